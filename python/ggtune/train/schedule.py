"""Learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

from ggtune.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay (SGDR without restarts, arXiv:1608.03983), linear decay or a constant.

    ``kind`` is "cosine", "linear" or "constant".
    """

    kind: str
    peak: float  # highest learning rate
    warmup_steps: int  # step i of them, from 0, has the rate peak * (i + 1) / warmup_steps
    decay_steps: int  # from the end of the warm-up until the lowest rate, which is kept after
    min_ratio: float  # lowest rate / peak

    @classmethod
    def for_run(
        cls, kind: str, peak: float, *, warmup: float, decay_steps: int, min_ratio: float, total_steps: int | None
    ) -> "Schedule":
        """``warmup`` below 1 is a share of ``total_steps``; ``decay_steps`` 0 ends with the run.

        ``total_steps`` is None for a run without a known end: a share is then no warm-up, and without ``decay_steps``
        the rate stays at its peak.
        """
        warmup_steps = round(warmup * (total_steps or 0)) if warmup < 1 else round(warmup)
        if not decay_steps and total_steps is None:
            kind = "constant"
        return cls(kind, peak, warmup_steps, decay_steps or max(0, (total_steps or 0) - warmup_steps), min_ratio)

    @classmethod
    def of(cls, config: TrainConfig, total_steps: int | None) -> "Schedule":
        """As :meth:`for_run`, with a run's settings."""
        return cls.for_run(
            config.schedule,
            config.lr,
            warmup=config.warmup,
            decay_steps=config.decay_steps,
            min_ratio=config.min_lr_ratio,
            total_steps=total_steps,
        )

    def rate(self, step: int) -> float:
        """Learning rate of the step number ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / self.decay_steps) if self.decay_steps else 1.0
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.kind == "cosine" else 1 - done
        return self.peak * (self.min_ratio + (1 - self.min_ratio) * left)
