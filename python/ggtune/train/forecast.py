"""Memory and time of a run before it is started: from the model's header, the data and a short calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import psutil

from ggtune.config import TrainConfig
from ggtune.data.packing import MicroBatch
from ggtune.system import format_bytes
from ggtune.train.beside import Beside, n_times
from ggtune.train.measuring import SAMPLE_TOKENS
from ggtune.train.placing import DeviceUse, placed_run, use_lines
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
    held_out_s: float  # of one evaluation's losses
    steps_per_epoch: int
    total_steps: int | None  # None where nothing ends the run
    micro_batches_per_step: float
    tokens_per_step: float
    can_recompute: bool = True  # whether any layer can be
    experts: str = ""  # how much of the adapter is for experts
    measured: Beside | None = None  # what is measured beside the steps
    scored_s: float = 0.0  # of the answers that are scored with an evaluation, at most
    samples_s: float = 0.0  # of one round of the fixed questions, at most
    devices: Mapping[str, DeviceUse] = field(default_factory=dict)  # what lies where; empty: all on the CPU
    messages: tuple[str, ...] = ()  # about devices
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
        name = "Main memory" if self.devices else "Memory"
        lines = [
            *self.messages,
            *self._device_lines(),
            f"{name}: {format_bytes(self.total_bytes)} at the peak, {format_bytes(self.available_bytes)} are free: "
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
            where = " on devices" if self.devices and self.fits else ""
            return [*lines, f"Steps: {self.total_steps or 'no last step'}; their time was not tried{where}"]
        lines.append(
            f"Step: about {self.seconds_per_step:.2f} s for {self.tokens_per_step:.0f} tokens in "
            f"{self.micro_batches_per_step:.2f} micro-batches "
            f"({self.tokens_per_step / self.seconds_per_step:.0f} tokens/s)"
        )
        lines += self._measured_lines()
        if self.total_steps is None:
            lines.append(f"Steps: {self.steps_per_epoch} per epoch, no last step: it runs until it is stopped")
        else:
            most = "at most " if self.until_loss else ""
            duration = timedelta(seconds=round(self.total_steps * self.seconds_per_step + sum(self._beside_s())))
            lines.append(
                f"Steps: {most}{self.total_steps}, {self.steps_per_epoch} per epoch: {most}{duration} in all, "
                f"started now it ends about {now + duration:%Y-%m-%d %H:%M}"
                + (f" or when the loss stays under {self.until_loss:g}" if self.until_loss else "")
            )
        return lines

    def _device_lines(self) -> list[str]:
        lines = []
        for line, use in zip(use_lines(self.devices), self.devices.values(), strict=False):
            fits = (
                "" if not use.needed else ": it fits" if use.needed_bytes <= use.usable_bytes else ": it does NOT fit"
            )
            lines.append(f"Layers on {line}{fits}")
            lines += [f"  {name:<10} {format_bytes(n)}" for name, n in use.needed.items()]
        return lines

    def _n_times(self) -> tuple[int, int]:
        """How many evaluations, and rounds of questions; 0 where the run has no known end."""
        if self.total_steps is None or self.seconds_per_step is None:
            return 0, 0
        if self.measured is None:
            return 1 + math.ceil(self.total_steps / self.steps_per_epoch), 0
        every = (self.measured.eval_every, self.measured.sample_every)
        evaluations, rounds = (
            n_times(text, self.total_steps, self.steps_per_epoch, self.seconds_per_step) or 0 for text in every
        )
        return evaluations, rounds

    def _beside_s(self) -> tuple[float, float]:
        """Seconds of all evaluations, and of all rounds of questions."""
        evaluations, rounds = self._n_times()
        return evaluations * (self.held_out_s + self.scored_s), rounds * self.samples_s

    def _measured_lines(self) -> list[str]:
        if self.measured is None or self.total_steps is None or self.seconds_per_step is None:
            return []
        n, costs = self._n_times(), self._beside_s()
        training_s = self.total_steps * self.seconds_per_step
        memory = f"{format_bytes(self.measured.answer_bytes)} while answers are generated"
        found = []
        if self.measured.held_out_samples:
            scored = f", of which {self.scored_s:.2f} s at most for {self.measured.n_scored} answers; {memory}"
            found.append(
                f"Evaluation: about {self.held_out_s + self.scored_s:.2f} s each, {n[0]} times: "
                f"{timedelta(seconds=round(costs[0]))}, {100 * costs[0] / training_s:.1f} % beside the steps"
                + (scored if self.measured.n_scored else "; no memory beside the training's")
            )
        if self.measured.n_questions:
            found.append(
                f"Sample answers: at most {self.samples_s:.2f} s for {self.measured.n_questions} questions, "
                f"{n[1]} times: "
                f"{timedelta(seconds=round(costs[1]))}, {100 * costs[1] / training_s:.1f} % beside the steps; {memory}"
            )
        return found


def forecast(config: TrainConfig) -> Forecast:
    """Predict a run without loading weights or allocating for it. Raises :class:`GgtuneError` as the run would."""
    placed = placed_run(config, header_only=True)
    built, asked, measured, available = placed.built, placed.asked, placed.measured, placed.free_bytes
    config, engine, plan = built.config, built.engine, built.plan
    memory = dict(placed.needed)
    memory["program"] = psutil.Process().memory_info().rss
    n_steps = plan.steps_per_epoch
    batches = [batch for cursor in range(n_steps) for batch in plan.micro_batches(0, cursor)]
    n_tokens = sum(batch.n_tokens for batch in batches)
    # what the engine tries are the CPU's operations
    fits = sum(memory.values()) <= available and not placed.devices
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
        measured=measured,
        scored_s=_answers_s(engine, [len(q.prompt) for q in asked.scored], asked.scored_tokens) if fits else 0.0,
        samples_s=_answers_s(engine, [len(q.prompt) for q in asked.fixed], SAMPLE_TOKENS) if fits else 0.0,
        devices=placed.devices,
        messages=placed.lines,
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


def _answers_s(engine: "Trainer", prompts: Sequence[int], max_tokens: int) -> float:
    """Predict the time of answers of ``max_tokens`` to prompts of so many tokens, from that of forward passes."""
    if not prompts:
        return 0.0

    def forward_s(n_tokens: int) -> float:
        tokens, weights = np.zeros(n_tokens, np.int32), np.zeros(n_tokens, np.float32)
        weights[-1] = 1.0
        rows = np.arange(n_tokens, dtype=np.int32)
        return engine.predict_seconds(tokens, rows, tokens, tokens, weights, gradients=False)

    mean = max(1, round(sum(prompts) / len(prompts)))
    return len(prompts) * (forward_s(mean) + max_tokens * forward_s(1))
