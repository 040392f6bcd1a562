"""A run as it is seen from outside, and what is new of it since the last look."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggtune.board.answers import Answers
from ggtune.board.forecast import Forecast
from ggtune.board.results import Results
from ggtune.errors import GgtuneError
from ggtune.run.history import History, is_number
from ggtune.run.outputs import Outputs
from ggtune.run.progress import format_duration
from ggtune.run.status import DEAD, RUNNING, RunStatus, read_status, read_status_file
from ggtune.run.tail import Tail, json_objects
from ggtune.run.watchdog import spike_text
from ggtune.train.curve import CurveFit
from ggtune.train.monitor import Monitor
from ggtune.train.verdict import turn_text

LOG = "log.txt"  # of a detached run
_MOST_LINES = 200  # of the log, and warnings
_LONGEST_LINE = 500  # characters shown of one
_IDLE_STEPS = 20  # times as long as a step without one is worth a word
_IDLE_LEAST_S = 60.0
_SPIKE = 3.0  # where the settings don't say


class LiveRun:
    """The run in ``folder``; :meth:`look` reads what is new. What is wrong with a folder is in ``problem``.

    ``versions`` counts the changes of each part.
    """

    PARTS = ("status", "figures", "samples", "log", "warnings", "results")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        outputs = Outputs.folder(folder)
        self.status: RunStatus | None = None
        self.problem = ""
        self.history = History()
        self.answers = Answers()
        self.results = Results(folder)
        self._forecast = Forecast()
        self._monitor = Monitor()
        self.log: deque[str] = deque(maxlen=_MOST_LINES)
        self.is_whole = False  # all of the metrics is read
        self.versions = dict.fromkeys(self.PARTS, 0)
        self._metrics, self._samples, self._log = (
            Tail(path) for path in (outputs.metrics, folder / "samples.jsonl", folder / LOG)
        )
        self._reading = self.history  # what is read anew takes the place of the old when it is whole
        self._trouble: deque[str] = deque(maxlen=_MOST_LINES)
        self._config: tuple[tuple[int, int] | None, Mapping[str, Any]] = (None, {})
        self._diagnosis: tuple[tuple[int, int] | None, list[str]] = (None, [])
        self._warnings: list[str] = []

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings as ``config.json`` has them; empty where it can't be read."""
        return self._config[1]

    @property
    def warnings(self) -> list[str]:
        """What does not go as it should, the latest last."""
        return self._warnings

    @property
    def data(self) -> str:
        """The name of the data file, "" where it is not known."""
        return Path(str(self.config.get("data") or "")).name

    @property
    def model(self) -> str:
        """The name of the model file, "" where it is not known."""
        return Path(str(self.config.get("model") or "")).name

    def look(self) -> bool:
        """Read on; True where there is more to read at once (a long file is read in pieces)."""
        self._read_settings()
        more = self._read_metrics()
        more |= self._read_samples()
        more |= self._read_log()
        self._read_status()
        self._read_warnings()
        return more

    def forecast(self) -> list[str]:
        """Say what going on is worth; nothing where too little was measured to say so."""
        return self._forecast.lines(self.history, self.status)

    def curve(self) -> CurveFit | None:
        """Return the curve fitted to the held-out losses, None where too few were measured."""
        return self._forecast.curve(self.history, self.status)

    def look_at_results(self) -> None:
        """Read answers before and after, and scores: for who looks at this run."""
        self.versions["results"] += self.results.look()

    def _read_settings(self) -> None:
        path = self.folder / "config.json"
        if (signature := _signature(path)) != self._config[0]:
            self._config = signature, read_status_file(path)

    def _read_metrics(self) -> bool:
        look = self._metrics.look()
        if look.began_anew:
            self._reading, self._monitor = History(), Monitor()
            self._trouble.clear()
        records = json_objects(look.lines)
        if records:
            self._note_trouble(records)
            self._reading.add(records)
        if look.is_more and self._reading is not self.history and self.history.n_records:
            return True
        if records or look.began_anew:
            self.history = self._reading
            self.versions["figures"] += 1
        self.is_whole = not look.is_more
        return look.is_more

    def _note_trouble(self, records: list[dict[str, Any]]) -> None:
        factor = self.config.get("spike")
        factor = float(factor) if is_number(factor) else _SPIKE
        before = self._reading.last[-1] if self._reading.last else {}
        n_before = self._reading.n_records
        for i, record in enumerate(records):
            if dropped := record.get("dropped"):
                self._trouble.append(f"step {record.get('step')} was dropped: {dropped}"[:_LONGEST_LINE])
            loss, smoothed = record.get("loss"), before.get("smoothed_loss")
            if is_number(loss) and is_number(smoothed) and loss > factor * smoothed > 0:
                text = spike_text(record.get("step", 0), loss, smoothed, n_before + i, factor)
                if text is not None:
                    self._trouble.append(text.removeprefix("warning: "))
            before = record
            self._note_turn(record)

    def _note_turn(self, record: Mapping[str, Any]) -> None:
        """Watch for overfitting by what the run itself watches it by."""
        monitor, loss, held_out = self._monitor, record.get("loss"), record.get("held_out_loss")
        if is_number(loss):
            monitor.update(loss, 0.0)
        if is_number(held_out):
            monitor.measure(held_out, record.get("step", 0))
            if monitor.has_turned_up and not monitor.turn_told:
                monitor.turn_told = True
                self._trouble.append(turn_text(monitor).removeprefix("warning: "))

    def _read_samples(self) -> bool:
        look = self._samples.look()
        if look.began_anew:
            self.answers = Answers()
        for record in json_objects(look.lines):
            self.answers.add(record)
        if look.lines or look.began_anew:
            self.versions["samples"] += 1
        return look.is_more

    def _read_log(self) -> bool:
        look = self._log.look()
        if look.began_anew:
            self.log.clear()
        before = len(self.log), self.log[-1] if self.log else ""
        for line in look.lines:
            # the line of each step says what the figures say
            if line and not line.startswith(b"step "):
                self.log.append(line.decode("utf-8", "replace").rpartition("\r")[2][:_LONGEST_LINE])
        if (len(self.log), self.log[-1] if self.log else "") != before:
            self.versions["log"] += 1
        return look.is_more

    def _read_status(self) -> None:
        records = [*([self.history.last_held_out] if self.history.last_held_out else []), *self.history.last]
        status, problem = None, ""
        try:
            status = read_status(self.folder, records)
        except (GgtuneError, OSError) as error:
            problem = str(error)
        except (TypeError, ValueError, OverflowError) as error:  # figures of another program's
            problem = f"{self.folder}: its files can't be read: {error}"
        is_new = problem != self.problem or _lasting(status) != _lasting(self.status)
        self.status, self.problem = status, problem
        self.versions["status"] += is_new

    def _read_warnings(self) -> None:
        path = self.folder / "diagnosis.json"
        if (signature := _signature(path)) != self._diagnosis[0]:
            self._diagnosis = signature, _findings(read_status_file(path))
        warnings = [*self._trouble]
        told = {f"warning: {text}" for text in warnings}
        warnings += [
            line.removeprefix("warning: ") for line in self.log if line.startswith("warning: ") and line not in told
        ]
        warnings += self._diagnosis[1]
        if self.status is not None and self.status.state == DEAD:
            warnings.append(self.status.reason)
        if idle := self._idle_text():
            warnings.append(idle)
        if warnings != self._warnings:
            self._warnings = warnings
            self.versions["warnings"] += 1

    def _idle_text(self) -> str:
        """Say that no step has come for far longer than steps take."""
        status, last = self.status, self.history.last
        if status is None or status.state != RUNNING or status.idle_s is None or len(last) < 2:
            return ""
        first_s, last_s = last[0].get("elapsed_s"), last[-1].get("elapsed_s")
        if not is_number(first_s) or not is_number(last_s):
            return ""
        limit_s = max(_IDLE_LEAST_S, _IDLE_STEPS * (last_s - first_s) / (len(last) - 1))
        if status.idle_s < limit_s:
            return ""
        return f"no step for {format_duration(60 * (status.idle_s // 60))}: it is evaluating, or the machine is busy"


def _lasting(status: RunStatus | None) -> RunStatus | None:
    """Leave out what changes by itself."""
    return None if status is None else replace(status, idle_s=None)


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _findings(diagnosis: Mapping[str, Any]) -> list[str]:
    """Say what a diagnosis has found, with its advice."""
    findings = diagnosis.get("findings")
    texts = []
    for finding in findings if isinstance(findings, list) else []:
        if isinstance(finding, dict) and isinstance(finding.get("text"), str):
            advice = finding.get("advice")
            texts.append(f"{finding['text']} {advice if isinstance(advice, str) else ''}".strip()[:_LONGEST_LINE])
    return texts


def as_json(value: object) -> bytes:
    """Write JSON without NaN, which browsers refuse, and with nothing that a page could take for a tag."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
