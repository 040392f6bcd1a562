"""What is watched while training: the smoothed loss, and when to stop."""

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

    def update(self, loss: float, stop_loss: float) -> None:
        """Count a step. ``stop_loss`` 0 is no threshold."""
        self.n_steps += 1
        self.average = self.decay * self.average + (1 - self.decay) * loss
        self.n_under = self.n_under + 1 if stop_loss > 0 and loss < stop_loss else 0

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
