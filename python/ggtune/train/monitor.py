"""What is watched while training: the smoothed loss, and when to stop."""

import math
from dataclasses import asdict, dataclass
from typing import Any

_START_STEPS = 5
_GAIN = 0.01  # share of an epoch's loss by which a later one has to be lower to count as better
PLATEAU_LEAST_STEPS = 50
MAX_REDUCTIONS = 3  # of the rate, before a loss that no longer falls ends the run
_TURN = 0.01  # share of the lowest held-out loss: to be so far above it, twice in a row, is no noise


@dataclass
class Monitor:
    """Smoothed loss, steps in a row under a threshold, epochs in a row that brought nothing, held-out measurements.

    The best step is that of the lowest held-out loss, or of the highest score where one was chosen; of equal scores the
    one with the lower loss.

    The smoothed loss is an exponential moving average, corrected for its start (arXiv:1412.6980, section 3).
    """

    decay: float = 0.9
    average: float = 0.0  # not corrected
    n_steps: int = 0
    n_under: int = 0
    under: float = 0.0  # the threshold that ``n_under`` steps in a row were under
    held_out: float | None = None
    held_out_before: float | None = None
    best_held_out: float | None = None  # of the best step
    best_step: int | None = None
    best_score: float | None = None  # None where the loss decides
    n_not_better: int = 0  # measurements in a row since the best
    held_out_step: int | None = None  # after which ``held_out`` was measured
    lowest_held_out: float | None = None
    lowest_step: int | None = None
    lowest_smoothed: float | None = None  # smoothed training loss then
    n_above: int = 0  # measurements in a row that were clearly above the lowest
    turn_told: bool = False  # of this turn
    evaluated_s: float = 0.0  # seconds into the run when the held-out loss was last measured, where time decides
    sampled_s: float = 0.0  # and when the fixed questions were last asked
    first_loss: float | None = None
    start_loss: float | None = None  # mean of the first steps
    epoch_loss: float = 0.0  # sum over this epoch's steps
    epoch_steps: int = 0
    best_epoch_loss: float | None = None  # mean over an epoch's steps
    n_flat_epochs: int = 0  # in a row
    n_flat_steps: int = 0
    n_reductions: int = 0

    def update(self, loss: float, stop_loss: float) -> None:
        """Count a step. ``stop_loss`` 0 is no threshold."""
        self.n_steps += 1
        if self.n_steps == 1:
            self.first_loss = loss
        if self.n_steps <= _START_STEPS:
            self.start_loss = ((self.start_loss or 0.0) * (self.n_steps - 1) + loss) / self.n_steps
        self.epoch_loss += loss
        self.epoch_steps += 1
        self.average = self.decay * self.average + (1 - self.decay) * loss
        if stop_loss < self.under:
            self.n_under = 0  # what was under the threshold of before need not be under this one
        self.under = stop_loss
        self.n_under = self.n_under + 1 if stop_loss > 0 and loss < stop_loss else 0

    def end_epoch(self, plateau: int) -> bool:
        """Compare the mean loss of the epoch's steps with the best one before.

        True where ``plateau`` epochs in a row (0: never), of enough steps, brought nothing and the rate is to be
        reduced: a constant rate has a loss under which its own noise keeps it from coming.
        """
        if self.epoch_steps:
            mean = self.epoch_loss / self.epoch_steps
            if self.best_epoch_loss is None or mean < (1 - _GAIN) * self.best_epoch_loss:
                self.best_epoch_loss, self.n_flat_epochs, self.n_flat_steps = mean, 0, 0
            else:
                self.n_flat_epochs += 1
                self.n_flat_steps += self.epoch_steps
        self.epoch_loss, self.epoch_steps = 0.0, 0
        if not self._is_stuck(plateau) or self.n_reductions == MAX_REDUCTIONS:
            return False
        self.n_reductions += 1
        self.n_flat_epochs = self.n_flat_steps = 0
        return True

    def measure(self, held_out: float, step: int, score: float | None = None) -> bool:
        """Note a held-out loss, and a score where that decides; True where the step is the best so far."""
        self.held_out, self.held_out_step = held_out, step
        self.n_not_better += 1
        if not math.isfinite(held_out):
            return False
        if self.lowest_held_out is None or held_out < self.lowest_held_out:
            self.lowest_held_out, self.lowest_step, self.n_above, self.turn_told = held_out, step, 0, False
            self.lowest_smoothed = self.smoothed if self.n_steps else None
        else:
            self.n_above = self.n_above + 1 if held_out > (1 + _TURN) * self.lowest_held_out else 0
        if self.best_held_out is not None:
            before, now = self.best_score or 0.0, score or 0.0
            if now < before or (now == before and held_out >= self.best_held_out):
                return False
        self.best_held_out, self.best_step, self.best_score, self.n_not_better = held_out, step, score, 0
        return True

    @property
    def has_turned_up(self) -> bool:
        """True where the held-out loss has risen from its lowest while the training loss went on falling."""
        return self.n_above >= 2 and self.lowest_smoothed is not None and self.smoothed < self.lowest_smoothed

    def is_exhausted(self, early_stop: int) -> bool:
        """True where the last ``early_stop`` measurements (0: never) brought nothing better."""
        return 0 < early_stop <= self.n_not_better

    @property
    def smoothed(self) -> float:
        """The corrected average, NaN before the first step."""
        return self.average / (1 - self.decay**self.n_steps) if self.n_steps else float("nan")

    def is_under(self, stop_loss: float, patience: int) -> bool:
        """True where the loss of the last ``patience`` steps was under ``stop_loss``."""
        return stop_loss > 0 and stop_loss >= self.under and self.n_under >= patience

    def is_flat(self, plateau: int) -> bool:
        """True where nothing gets better any more, at the lowest rate neither."""
        return self._is_stuck(plateau) and self.n_reductions == MAX_REDUCTIONS

    def _is_stuck(self, plateau: int) -> bool:
        return plateau > 0 and self.n_flat_epochs >= plateau and self.n_flat_steps >= PLATEAU_LEAST_STEPS

    def stop_reason(
        self, stop_loss: float, patience: int, plateau: int = 0, early_stop: int = 0, metric: str = "loss"
    ) -> str | None:
        """Why to stop now, None for going on. ``metric`` is what ``early_stop`` goes by."""
        if self.is_under(stop_loss, patience):
            return f"the training loss stayed under {stop_loss:g} for {self.n_under} steps in a row"
        if self.is_flat(plateau):
            return (
                f"the training loss has not got {100 * _GAIN:g} % better in {self.n_flat_epochs} epochs "
                f"({self.n_flat_steps} steps), at a rate halved {MAX_REDUCTIONS} times neither"
            )
        if self.is_exhausted(early_stop):
            name = "loss" if self.best_score is None else metric.replace("_", " ")
            best = self.best_held_out if self.best_score is None else self.best_score
            since = f"the best was {best:.4f}, after step {self.best_step}" if best is not None else "none was finite"
            times = "measurement" if self.n_not_better == 1 else f"{self.n_not_better} measurements in a row"
            return f"the held-out {name} has not got better in {times}: {since}"
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; ``Monitor(**state)`` restores it."""
        return asdict(self)
