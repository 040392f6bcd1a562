"""Memory and time of a run before it is started: from the model's header, the data and a short calibration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ggtune.config import TrainConfig
from ggtune.data.packing import MicroBatch
from ggtune.system import available_memory, format_bytes
from ggtune.train.build import build
from ggtune.train.recomputation import set_recomputation
from ggtune.train.targets import smaller_targets

if TYPE_CHECKING:
    from ggtune._core import Trainer


@dataclass(frozen=True)
class Forecast:
    """What a run will need."""

    memory_bytes: dict[str, int]  # by part; "weights" are mapped from the model's file
    available_bytes: int
    n_layer: int
    recompute_layers: int  # are computed a second time for their gradient
    seconds_per_step: float | None  # None where it does not fit
    held_out_s: float  # of one evaluation
    steps_per_epoch: int
    total_steps: int | None  # None where nothing ends the run
    micro_batches_per_step: float
    tokens_per_step: float
    can_recompute: bool = True  # whether any layer can be
    experts: str = ""  # how much of the adapter is for experts
    until_loss: float = 0.0  # the total steps are the most that are taken to come under it; 0: all of them are taken

    @property
    def total_bytes(self) -> int:
        """Peak."""
        return sum(self.memory_bytes.values())

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is."""
        return self.total_bytes <= self.available_bytes

    def lines(self, now: datetime) -> list[str]:
        """Return the text for the user."""
        smaller = (
            "--ctx or --rank" if self.recompute_layers or not self.can_recompute else "--ctx or --rank, or --recompute"
        )
        lines = [
            f"Memory: {format_bytes(self.total_bytes)} at the peak, {format_bytes(self.available_bytes)} are free: "
            + (
                "it fits"
                if self.fits
                else f"it does NOT fit; a smaller {smaller} needs less{smaller_targets(self.experts)}"
            ),
            f"  computed again for their gradient: {self.recompute_layers} of {self.n_layer} layers",
            *(f"  {name:<10} {format_bytes(n)}" for name, n in self.memory_bytes.items()),
            *([f"  of the adapter's parameters {self.experts}"] if self.experts else ()),
        ]
        if self.seconds_per_step is None:
            return [*lines, f"Steps: {self.total_steps or 'no last step'}; their time was not tried"]
        lines.append(
            f"Step: about {self.seconds_per_step:.2f} s for {self.tokens_per_step:.0f} tokens in "
            f"{self.micro_batches_per_step:.2f} micro-batches "
            f"({self.tokens_per_step / self.seconds_per_step:.0f} tokens/s)"
        )
        if self.total_steps is None:
            lines.append(f"Steps: {self.steps_per_epoch} per epoch, no last step: it runs until it is stopped")
        else:
            most = "at most " if self.until_loss else ""
            n_evaluations = 1 + math.ceil(self.total_steps / self.steps_per_epoch)
            seconds = self.total_steps * self.seconds_per_step + n_evaluations * self.held_out_s
            duration = timedelta(seconds=round(seconds))
            lines.append(
                f"Steps: {most}{self.total_steps}, {self.steps_per_epoch} per epoch: {most}{duration} in all, "
                f"started now it ends about {now + duration:%Y-%m-%d %H:%M}"
                + (f" or when the loss stays under {self.until_loss:g}" if self.until_loss else "")
            )
        return lines


def forecast(config: TrainConfig) -> Forecast:
    """Predict a run without loading weights or allocating for it. Raises :class:`GgtuneError` as the run would."""
    built = build(config, header_only=True)
    config, engine, plan, available = built.config, built.engine, built.plan, available_memory()
    memory = set_recomputation(built, available)
    memory["program"] = psutil.Process().memory_info().rss
    n_steps = plan.steps_per_epoch
    batches = [batch for cursor in range(n_steps) for batch in plan.micro_batches(0, cursor)]
    n_tokens = sum(batch.n_tokens for batch in batches)
    fits = sum(memory.values()) <= available
    return Forecast(
        memory_bytes=memory,
        available_bytes=available,
        n_layer=built.model.n_layer,
        recompute_layers=engine.recompute_layers,
        can_recompute=engine.n_recomputable_layers > 0,
        seconds_per_step=_seconds(engine, batches) / n_steps if fits else None,
        held_out_s=_seconds(engine, plan.held_out, gradients=False) if fits and plan.held_out else 0.0,
        steps_per_epoch=n_steps,
        total_steps=plan.total_steps,
        experts=built.experts,
        until_loss=config.stop_loss if config.until_stop_loss else 0.0,
        micro_batches_per_step=len(batches) / n_steps,
        tokens_per_step=n_tokens / n_steps,
    )


def _seconds(engine: "Trainer", batches: Sequence[MicroBatch], *, gradients: bool = True) -> float:
    """Predict the time of all of them from that of the shortest, the middle and the longest.

    What a target costs is the difference to the longest with a single target.
    """

    def predicted(batch: MicroBatch) -> float:
        return engine.predict_seconds(*batch.arrays, gradients=gradients)

    ordered = sorted(batches, key=lambda batch: batch.n_tokens)
    tried = {batch.n_tokens: batch for batch in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}
    seconds = {n: predicted(batch) for n, batch in tried.items()}
    longest = ordered[-1]
    per_target_s = 0.0
    if longest.n_targets > 1:
        one_target = np.zeros_like(longest.weights)
        one_target[np.flatnonzero(longest.weights)[-1]] = 1.0
        difference_s = seconds[longest.n_tokens] - predicted(replace(longest, weights=one_target))
        per_target_s = max(0.0, difference_s / (longest.n_targets - 1))
    rest_s = [max(0.0, seconds[n] - per_target_s * batch.n_targets) for n, batch in tried.items()]
    total_s = np.interp([batch.n_tokens for batch in batches], list(tried), rest_s).sum()
    return float(total_s) + per_target_s * sum(batch.n_targets for batch in batches)
