"""What is watched while training: the smoothed loss, and when to stop."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Monitor:
    """Smoothed loss, steps in a row under a threshold, held-out losses.

    The smoothed loss is an exponential moving average, corrected for its start (arXiv:1412.6980, section 3).
    """

    decay: float = 0.9
    average: float = 0.0  # not corrected
    n_steps: int = 0
    n_under: int = 0
    held_out: float | None = None
    held_out_before: float | None = None
    best_held_out: float | None = None
    best_step: int | None = None

    def update(self, loss: float, stop_loss: float) -> None:
        """Count a step. ``stop_loss`` 0 is no threshold."""
        self.n_steps += 1
        self.average = self.decay * self.average + (1 - self.decay) * loss
        self.n_under = self.n_under + 1 if stop_loss > 0 and loss < stop_loss else 0

    def measure(self, held_out: float, step: int) -> bool:
        """Note a held-out loss; True where it is the best so far."""
        self.held_out = held_out
        if not math.isfinite(held_out) or (self.best_held_out is not None and held_out >= self.best_held_out):
            return False
        self.best_held_out, self.best_step = held_out, step
        return True

    @property
    def smoothed(self) -> float:
        """The corrected average, NaN before the first step."""
        return self.average / (1 - self.decay**self.n_steps) if self.n_steps else float("nan")

    def stop_reason(self, stop_loss: float, patience: int) -> str | None:
        """Why to stop now, None for going on."""
        if stop_loss > 0 and self.n_under >= patience:
            return f"the training loss stayed under {stop_loss:g} for {self.n_under} steps in a row"
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; ``Monitor(**state)`` restores it."""
        return asdict(self)
