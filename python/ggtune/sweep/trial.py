"""One trial, from where it stands to the end of its rung: a training in a run folder as any other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.errors import DivergedError, GgtuneError
from ggtune.files import WriteError
from ggtune.pipeline import TrainOptions, find_checkpoint, train
from ggtune.run.checkpoint import Checkpoint
from ggtune.run.lock import check_free
from ggtune.run.metrics import read_metrics
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Reporter
from ggtune.setting import setting_of
from ggtune.sweep.sheet import DIVERGED, FAILED, FINISHED, LEFT, Outcome, Sheet, Trial
from ggtune.train.monitor import Monitor
from ggtune.train.result import Result
from ggtune.train.verdict import has_diverged, verdicts


class PauseAfter(Observer):
    """Leaves a run at its first measurement after so many steps."""

    def __init__(self, step: int) -> None:
        self._step = step

    def pause(self, record: Mapping[str, Any]) -> str | None:
        """Say so."""
        if record["step"] < self._step:
            return None
        return f"left after step {record['step']} by the sweep, which goes on with the better ones"


class TrialReporter(Reporter):
    """Tells of a trial's steps, and of what happens between them; what every training says before them, once."""

    def __init__(self, reporter: Reporter, *, is_first: bool) -> None:
        self._reporter = reporter
        self._tells = is_first

    def __enter__(self) -> "TrialReporter":
        self._reporter.__enter__()
        self._tells = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tells = False
        self._reporter.__exit__(kind, error, trace)

    def start(self, *, step: int, total_steps: int | None) -> None:
        """Pass it on."""
        self._reporter.start(step=step, total_steps=total_steps)

    def step(
        self, record: Mapping[str, Any], *, held_out: float | None, total_steps: int | None, eta_s: float | None
    ) -> None:
        """Pass it on."""
        self._reporter.step(record, held_out=held_out, total_steps=total_steps, eta_s=eta_s)

    def note(self, text: str) -> None:
        """Pass it on, where it is of this trial alone."""
        if self._tells:
            self._reporter.note(text)


@dataclass(frozen=True)
class Begun:
    """A trial as its folder has it."""

    outputs: Outputs
    checkpoint: Checkpoint | None

    @property
    def step(self) -> int:
        """Steps that need not be taken again."""
        return self.checkpoint.state.step if self.checkpoint is not None else 0

    def left(self, until: int) -> Result | None:
        """Return how it stood when it was left, where it was measured after ``until``: killed before that was noted."""
        if self.checkpoint is None or self.checkpoint.state.pending:
            return None
        monitor, state = Monitor(**self.checkpoint.state.monitor), self.checkpoint.state
        if (monitor.held_out_step or 0) < until:
            return None
        return Result(
            config=self.checkpoint.config,
            steps=state.step,
            stop_reason="",
            loss=None,
            smoothed_loss=monitor.smoothed,
            held_out_loss=monitor.held_out,
            held_out_before=monitor.held_out_before,
            best_held_out=monitor.best_held_out,
            best_step=monitor.best_step,
            first_loss=monitor.first_loss,
            start_loss=monitor.start_loss,
            n_updates=state.n_updates,
            steps_per_epoch=0,
            is_under=False,
            is_flat=False,
            n_tokens=0,
            seconds=0.0,
            adapter=self.outputs.adapter,
            paused=True,
        )


def begun(folder: Path) -> Begun:
    """Look for the checkpoint to go on from. Raises :class:`GgtuneError` where a process is at the trial."""
    outputs = Outputs.folder(folder)
    check_free(outputs.lock)
    try:
        return Begun(outputs, find_checkpoint(outputs))
    except GgtuneError:  # none that is whole: from the beginning it comes to the same
        return Begun(outputs, None)


def go_on(
    sheet: Sheet,
    trial: Trial,
    there: Begun,
    until: int | None,
    given: Mapping[str, Any],
    reporter: Reporter,
    *,
    listed: bool,
) -> Outcome:
    """Train until the first measurement after ``until`` steps (None: to the end), and say how the trial stands then.

    ``given`` are settings that another run may have too, such as the threads. Raises :class:`GgtuneError` for what is
    not the trial's fault, as a full disk, and :class:`~ggtune.run.interrupts.RunInterruptedError`.
    """
    if until is not None and (result := there.left(until)) is not None:
        return _came_to(there.outputs, result)
    config, checkpoint = sheet.config(trial, given), there.checkpoint
    if checkpoint is not None:
        may_change = {f.name: getattr(config, f.name) for f in fields(config) if setting_of(f).resumable}
        config = checkpoint.config.continued({name: value for name, value in may_change.items() if value is not None})
    observers = (PauseAfter(until),) if until is not None else ()
    options = TrainOptions(checkpoint, overwrite=checkpoint is None, listed=listed, observers=observers)
    try:
        result = train(config, there.outputs, options, reporter)
    except DivergedError as error:
        return _outcome(there.outputs, DIVERGED, str(error))
    except MemoryError:
        return _outcome(there.outputs, FAILED, "out of memory")
    except GgtuneError as error:
        if isinstance(error, WriteError) or isinstance(error.__cause__, WriteError):
            raise
        return _outcome(there.outputs, FAILED, str(error))
    return _came_to(there.outputs, result)


def _came_to(outputs: Outputs, result: Result) -> Outcome:
    if has_diverged(result):
        return _outcome(outputs, DIVERGED, verdicts(result)[0])
    return _outcome(outputs, LEFT) if result.paused else _outcome(outputs, FINISHED, result.stop_reason)


def _outcome(outputs: Outputs, state: str, reason: str = "") -> Outcome:
    """Take the figures from what the run has written: they are the same in whichever session it was measured."""
    records = read_metrics(outputs.metrics)
    measured = [
        (loss, record["step"])
        for record in records
        if (loss := record.get("held_out_loss")) is not None and math.isfinite(loss)
    ]
    best = min(measured, default=None)
    return Outcome(
        state,
        reason,
        best_held_out=best[0] if best else None,
        best_step=best[1] if best else None,
        held_out_before=next((r["held_out_before"] for r in records if r.get("held_out_before") is not None), None),
        steps=records[-1]["step"] if records else 0,
        elapsed_s=float(records[-1].get("elapsed_s", 0.0)) if records else 0.0,
    )
