"""What going on is worth, out of a run's metrics: for its last lines, for those who watch it, for its report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggtune.scores.statistics import Estimate
from ggtune.train.curve import CurveFit, fit_curve

_LEAST_MEASURED = 4  # after steps: fewer tell nothing of an epoch to come
_WORTH = 0.0025  # share of the loss: an epoch that brings less is not worth its time


@dataclass(frozen=True)
class Outlook:
    """What the fitted curve says where a run stands; losses are held-out ones."""

    fit: CurveFit
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


def outlook(records: Sequence[Mapping[str, Any]], total_steps: int | None = None) -> Outlook | None:
    """Fit the held-out losses of a run's metrics; None where too few were measured.

    ``total_steps`` is where a run that goes on will end; None for one that has ended, or has no known end. Takes some
    hundredths of a second.
    """
    points = measured_losses(records)
    after = [(step, loss) for step, loss in points if step > 0]
    if len(after) < _LEAST_MEASURED:
        return None
    fit = fit_curve([step for step, _ in points], [loss for _, loss in points])
    last = records[-1]
    step, epoch = last.get("step"), last.get("epoch")
    if fit is None or not isinstance(step, int) or not isinstance(epoch, (int, float)) or not epoch > 0:
        return None
    steps_per_epoch = max(1, round(step / epoch))
    best_step, best = min(after, key=lambda point: point[1])
    at = after[-1][0]
    rest = total_steps if total_steps is not None and total_steps > at else None
    return Outlook(
        fit=fit,
        step=at,
        steps_per_epoch=steps_per_epoch,
        best=best,
        best_step=best_step,
        epoch_gain=fit.gain_over(best, at, at + steps_per_epoch),
        total_steps=rest,
        rest_gain=fit.gain_over(best, at, rest) if rest is not None else None,
        final=fit.predict(rest) if rest is not None else None,
    )
