"""TensorBoard's event files: TFRecords of ``Event`` messages, one for each step, in ``events/`` of the run folder.

Written by tensorboardX's record writer and messages, on the caller's thread: its ``SummaryWriter`` hands events to a
thread that a full disk ends, and then waits for it forever.
"""

import json
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from ggtune.extras import need
from ggtune.run.event_logs.facts import HELD_OUT, TRAINING, Past, Record, RunFacts, by_step, markdown, points
from ggtune.run.status import FINISHED

_NAME = "events.out.tfevents."
_FLUSH_S = 1.0  # what a killed process loses is written anew when the run goes on


def _module(name: str) -> ModuleType:
    return need(name, "tensorboard", "--log tensorboard")


class TensorBoardLog:
    """An event file that holds the whole run; those of earlier sessions are removed when their steps are in it.

    It begins with the mark of a restart at step 0: a TensorBoard that is open then drops what it has read of them.
    """

    def __init__(self) -> None:
        _module("tensorboardX")  # is what is missing, where it is
        self._events = _module("tensorboardX.proto.event_pb2")
        self._messages = _module("tensorboardX.proto.summary_pb2")
        self._summary = _module("tensorboardX.summary")
        self._file: Any = None
        self._success: Any = None
        self._flushed = 0.0

    def begin(self, facts: RunFacts, past: Past) -> None:
        """Write a new file."""
        facts.folder.mkdir(parents=True, exist_ok=True)
        older = [path for path in facts.folder.iterdir() if path.name.startswith(_NAME)]
        self._file = _module("tensorboardX.record_writer").RecordWriter(str(_new_path(facts.folder, older)))
        start_s = datetime.fromisoformat(facts.started).timestamp()
        self._write(start_s, file_version="brain.Event:2")
        self._write(start_s, session_log=self._events.SessionLog(status=self._events.SessionLog.START), step=0)
        experiment, session, self._success = self._summary.hparams(dict(facts.settings), {HELD_OUT: 0, TRAINING: 0})
        settings = json.dumps(dict(facts.settings), indent=2, ensure_ascii=False)
        page = "\n".join("    " + line for line in settings.splitlines())
        for summary in (experiment, session, self._summary.text("settings", page)):
            self._write(start_s, summary=summary)
        times = {0: start_s}
        for record in past.records:
            times[record["step"]] = start_s + record.get("elapsed_s", 0.0)
            for step, values in points(record):
                self._scalars(step, values, times[step])
        for step, lines in by_step(past.answers).items():
            self._answers(step, lines, times.get(step, start_s))
        self._file.flush()
        for path in older:
            path.unlink()

    def step(self, record: Record) -> None:
        """Write the numbers of a step as one event."""
        for step, values in points(record):
            self._scalars(step, values, time.time())
        if time.monotonic() - self._flushed >= _FLUSH_S:
            self._flush()

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        """Write a text for each question: TensorBoard shows them step by step."""
        self._answers(step, lines, time.time())
        self._flush()

    def end(self, state: str) -> None:
        """Say that the run has ended, where it has, and close the file."""
        if state == FINISHED:
            self._write(time.time(), summary=self._success)
        self._flush()
        self._file.close()
        self._file = None

    def abandon(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _scalars(self, step: int, values: dict[str, float], wall_time: float) -> None:
        value = self._messages.Summary.Value
        summary = self._messages.Summary(value=[value(tag=tag, simple_value=number) for tag, number in values.items()])
        self._write(wall_time, summary=summary, step=step)

    def _answers(self, step: int, lines: Iterable[Record], wall_time: float) -> None:
        for number, line in enumerate(lines, 1):
            text = self._summary.text(f"answers/{number}", markdown(line))
            self._write(wall_time, summary=text, step=step)

    def _write(self, wall_time: float, **fields: Any) -> None:
        self._file.write(self._events.Event(wall_time=wall_time, **fields).SerializeToString())

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()


def _new_path(folder: Path, older: Sequence[Path]) -> Path:
    """Return a name that is sorted behind the older ones: TensorBoard reads the files in this order."""
    seconds = [int(time.time())]
    for path in older:
        written = path.name[len(_NAME) :].partition(".")[0]
        seconds.append(int(written) + 1 if written.isdecimal() else 0)
    return folder.resolve() / f"{_NAME}{max(seconds):010}.{socket.gethostname()}"
