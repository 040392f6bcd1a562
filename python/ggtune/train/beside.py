"""What is measured beside the steps: how often, how much of it, and the memory that it takes of its own."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune.data.store import lengths_of
from ggtune.generate.slots import generation_bytes, slots_for
from ggtune.setting_texts import EvalInterval
from ggtune.system import format_bytes
from ggtune.train.build import Build
from ggtune.train.measuring import SAMPLE_TOKENS, Asked

if TYPE_CHECKING:
    from ggtune._core import Model


@dataclass(frozen=True)
class Beside:
    """The amounts; numbers of times are None where the run has no known end or time decides."""

    held_out_samples: int
    held_out_tokens: int
    n_evaluations: int | None
    n_scored: int  # questions whose answers are scored with each evaluation
    scored_tokens: int  # of one answer, at most
    n_questions: int  # of the fixed ones
    n_rounds: int | None
    answer_bytes: int  # while answers are generated, beside what the training holds
    eval_every: str
    sample_every: str

    def lines(self, tokens_per_step: float) -> list[str]:
        """Say it before a run, whose time nobody has tried yet."""
        found = []
        if self.held_out_samples:
            # without gradients: a forward pass of the three that a step's tokens cost
            steps = self.held_out_tokens / tokens_per_step / 3 if tokens_per_step > 0 else 0.0
            found.append(
                f"Evaluation: {self.held_out_samples} samples, {self.held_out_tokens} tokens, "
                f"{times(self.n_evaluations, self.eval_every)}, each about as long as {steps:.1f} steps; no memory "
                "beside the training's" + (f", {self._scored()}" if self.n_scored else "")
            )
        if self.n_questions:
            found.append(
                f"Sample answers: {self.n_questions} questions, {times(self.n_rounds, self.sample_every)}, into "
                f"samples.jsonl; {format_bytes(self.answer_bytes)} while they are answered"
            )
        return found

    def _scored(self) -> str:
        return (
            f"and {self.n_scored} answers of at most {self.scored_tokens} tokens, "
            f"{format_bytes(self.answer_bytes)} while they are generated"
        )


def times(n: int | None, every: str) -> str:
    """Say how often."""
    return f"every {every}" if n is None else "once" if n == 1 else f"{n} times"


def beside(built: Build, asked: Asked) -> Beside:
    """Count what a run will measure, before the training and at its end included."""
    config, end = built.config, (built.plan.total_steps, built.plan.steps_per_epoch)
    return Beside(
        held_out_samples=len(built.samples.held_out),
        held_out_tokens=int((lengths_of(built.samples.held_out) - 1).sum()),
        n_evaluations=n_times(config.eval_every, *end),
        n_scored=len(asked.scored),
        scored_tokens=asked.scored_tokens,
        n_questions=len(asked.fixed),
        n_rounds=n_times(config.sample_every, *end),
        answer_bytes=answer_bytes(built.model, asked),
        eval_every=config.eval_every,
        sample_every=config.sample_every,
    )


def n_times(
    every: str, total_steps: int | None, steps_per_epoch: int, seconds_per_step: float | None = None
) -> int | None:
    """How often something is measured that is due ``every`` so often, at the start and the end of the run, too."""
    interval = EvalInterval.parse(every)
    if total_steps is None or (interval.seconds is not None and seconds_per_step is None):
        return None
    at_end = not interval.is_due(total_steps, steps_per_epoch, 0.0)
    return 1 + interval.times(total_steps, steps_per_epoch, seconds_per_step or 0.0) + at_end


def answer_bytes(model: "Model", asked: Asked) -> int:
    """Estimate what llama.cpp takes to generate the answers of one kind, the larger of both, beside the weights."""
    kinds = (
        [len(one.prompt) + SAMPLE_TOKENS for one in asked.fixed],
        [len(one.prompt) + asked.scored_tokens for one in asked.scored],
    )
    needed = [
        generation_bytes(model, max(lengths), slots_for(model, len(lengths), max(lengths)))
        for lengths in kinds
        if lengths
    ]
    return max(needed, default=0)
