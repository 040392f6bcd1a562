"""What going on is worth, out of a run's metrics: for its last lines, for those who watch it, for its report.

The curve is fitted against the sum of the learning rates so far, in steps of their mean: in a warm-up, and where the
rate has fallen, a step does less (as in Tissue et al. 2024, arXiv:2408.11029).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggtune.errors import GgtuneError
from ggtune.run.job import read_settings
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.status import FAILED, FINISHED, read_status_file
from ggtune.scores.statistics import Estimate
from ggtune.train.curve import CurveFit, fit_curve
from ggtune.train.schedule import Schedule

_LEAST_MEASURED = 4  # after steps: fewer tell nothing of an epoch to come
_WORTH = 0.0025  # share of the loss: an epoch that brings less is not worth its time


@dataclass(frozen=True)
class Outlook:
    """What the fitted curve says where a run stands; losses are held-out ones."""

    fit: CurveFit  # against the time of ``clock``
    clock: "Clock"
    step: int  # that was measured last
    steps_per_epoch: int
    best: float
    best_step: int
    epoch_gain: Estimate  # by which another epoch is better than the best so far; at least 0, since the best is kept
    total_steps: int | None  # None where the run has no known end, or stands at it
    rest_gain: Estimate | None  # the same of all steps that are left
    final: Estimate | None  # loss after the last step

    @property
    def can_stop(self) -> bool:
        """Whether neither another epoch nor the rest of the run is likely to bring anything worth having."""
        gains = [self.epoch_gain] if self.rest_gain is None else [self.epoch_gain, self.rest_gain]
        return all(gain.value < _WORTH * self.best for gain in gains)

    def lines(self) -> list[str]:
        """Say it."""
        gain = self.epoch_gain
        worth = f"another epoch is worth about {gain.value:.3f} of held-out loss ({gain.low:.3f} to {gain.high:.3f})"
        if self.rest_gain is not None and self.final is not None and self.total_steps is not None:
            left = self.total_steps - self.step
            worth += (
                f", the {left} steps that are left {self.rest_gain.value:.3f} ({self.rest_gain.low:.3f} to "
                f"{self.rest_gain.high:.3f}); at their end it is about {self.final.text(3)}"
            )
        found = [f"Outlook: {worth}."]
        if self.can_stop:
            best = f"step {self.best_step} has the best held-out loss, {self.best:.4f}, and is kept"
            found.append(f"You can stop now: {best}.")
        return found

    def predict(self, step: float) -> Estimate:
        """The loss that a measurement after ``step`` gives."""
        return self.fit.predict(self.clock.time(step))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        estimates = {"epoch_gain": self.epoch_gain, "rest_gain": self.rest_gain, "final": self.final}
        return {
            "step": self.step,
            "steps_per_epoch": self.steps_per_epoch,
            "best": self.best,
            "best_step": self.best_step,
            "total_steps": self.total_steps,
            "can_stop": self.can_stop,
            "lines": self.lines(),
            **{name: one.to_dict() if one is not None else None for name, one in estimates.items()},
        }


class Clock:
    """Time in steps of the mean learning rate, which is that of later steps, too, where ``rate`` doesn't say it."""

    def __init__(self, records: Sequence[Mapping[str, Any]], rate: Callable[[int], float] | None = None) -> None:
        """``rate`` is the learning rate of a step, counted from 0."""
        taken = [(r["step"], float(r["lr"])) for r in records if isinstance(r.get("lr"), (int, float))]
        rates = np.array([lr for _, lr in taken], np.float64)
        mean = float(rates.mean()) if len(rates) else 0.0
        self._rate = rate
        self._mean = mean
        if mean > 0:
            steps = np.array([step for step, _ in taken], np.float64)
            self._steps = np.concatenate([[steps[0] - 1], steps])  # of a file's end what was before counts as its mean
            self._times = steps[0] - 1 + np.concatenate([[0.0], np.cumsum(rates / mean)])
        else:
            self._steps = self._times = np.array([0.0, 1.0])

    def time(self, step: float) -> float:
        """When ``step`` is done."""
        last, now = float(self._steps[-1]), float(self._times[-1])
        if step < self._steps[0]:
            return step
        if step <= last:
            return float(np.interp(step, self._steps, self._times))
        if self._rate is None or self._mean <= 0:
            return now + step - last
        return now + sum(self._rate(i) for i in range(int(last), int(step))) / self._mean

    def epoch_later(self, step: int, steps_per_epoch: int) -> float:
        """When an epoch at the mean rate is done after ``step``, whatever the schedule has left for it."""
        return self.time(step) + steps_per_epoch


def measured_losses(records: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Steps and held-out losses of ``metrics.jsonl``, that before the training (step 0) first where it is there."""
    found = []
    for record in records:
        step = record.get("step")
        for name, at in (("held_out_before", 0), ("held_out_loss", step)):
            loss = record.get(name)
            if isinstance(at, int) and isinstance(loss, (int, float)) and math.isfinite(loss):
                found.append((at, float(loss)))
    return found


def outlook(
    records: Sequence[Mapping[str, Any]],
    total_steps: int | None = None,
    rate: Callable[[int], float] | None = None,
) -> Outlook | None:
    """Fit the held-out losses of a run's metrics; None where too few were measured.

    ``total_steps`` is where a run that goes on will end; None for one that has ended, or has no known end. ``rate`` is
    the learning rate of a step, counted from 0 (:meth:`ggtune.train.schedule.Schedule.rate`). Takes some hundredths of
    a second.
    """
    points = measured_losses(records)
    after = [(step, loss) for step, loss in points if step > 0]
    if len(after) < _LEAST_MEASURED:
        return None
    clock = Clock(records, rate)
    fit = fit_curve([clock.time(step) for step, _ in points], [loss for _, loss in points])
    last = records[-1]
    step, epoch = last.get("step"), last.get("epoch")
    if fit is None or not isinstance(step, int) or not isinstance(epoch, (int, float)) or not epoch > 0:
        return None
    steps_per_epoch = max(1, round(step / epoch))
    best_step, best = min(after, key=lambda point: point[1])
    at = after[-1][0]
    rest = total_steps if total_steps is not None and total_steps > at else None
    now = clock.time(at)
    return Outlook(
        fit=fit,
        clock=clock,
        step=at,
        steps_per_epoch=steps_per_epoch,
        best=best,
        best_step=best_step,
        epoch_gain=fit.gain_over(best, now, clock.epoch_later(at, steps_per_epoch)),
        total_steps=rest,
        rest_gain=fit.gain_over(best, now, clock.time(rest)) if rest is not None else None,
        final=fit.predict(clock.time(rest)) if rest is not None else None,
    )


def outlook_of_run(folder: Path) -> Outlook | None:
    """As :func:`outlook`, of a run's folder, with the schedule of its settings; None where that can't be read, too."""
    outputs = Outputs.folder(folder)
    written = read_status_file(folder / "status.json")
    total = written.get("total_steps")
    try:
        config = read_settings(folder / "config.json")
    except GgtuneError:
        config = None
    rate = None
    if config is not None and config.lr is not None and isinstance(total, int):
        rate = Schedule.of(config, total).rate
    goes_on = written.get("state") not in (FINISHED, FAILED)
    return outlook(read_metrics(outputs.metrics), total if isinstance(total, int) and goes_on else None, rate)
