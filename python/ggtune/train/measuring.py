"""What is measured beside the steps: the held-out loss, the score that decides, answers to fixed questions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ggtune.config import EVAL_EVERY, TrainConfig, flag
from ggtune.errors import GgtuneError
from ggtune.extras import need
from ggtune.scores.text import exact_match, f1, rouge_l
from ggtune.setting_texts import EvalInterval
from ggtune.system import resolved_threads
from ggtune.train.answering import Answer, greedy_answers
from ggtune.train.build import Build
from ggtune.train.fixed_questions import FixedQuestion, fixed_questions
from ggtune.train.monitor import Monitor
from ggtune.train.questions import Part, Question, part_of, questions_of

GENERATED: Mapping[str, Callable[[str, list[str]], float]] = {"exact_match": exact_match, "f1": f1, "rouge_l": rouge_l}
"""Scores of an answer, 0 to 1, by the names of ``--early-stop-metric``."""

_SCORED_SAMPLES = 64  # held-out ones, at most
_LEAST_TOKENS, _MOST_TOKENS = 16, 256  # of an answer, between which it gets one and a half of the longest reference
SAMPLE_TOKENS = 96  # of an answer to a fixed question
HELD_OUT, ANSWERS = "held_out", "answers"


@dataclass(frozen=True)
class Asked:
    """What is asked of the model while it is trained."""

    fixed: tuple[FixedQuestion, ...] = ()  # shown to the user
    scored: tuple[Question, ...] = ()  # whose answers are scored
    scored_tokens: int = 0  # of an answer, at most


def asked_of(built: Build) -> Asked:
    """Choose questions and samples as the settings say. Raises :class:`GgtuneError` where they can't be had."""
    config, samples = built.config, built.samples
    if not len(samples.held_out) and (idle := _without_effect(config)):
        raise GgtuneError(f"{idle} needs held-out samples, and there are none: give a larger --holdout")
    fixed: list[FixedQuestion] = []
    if EvalInterval.parse(config.sample_every) != EvalInterval():
        built.model.check_answers()
        fixed = fixed_questions(config.sample_questions, config, samples, built.model, "--sample-questions")
        if not fixed:
            raise GgtuneError("--sample-every: the data has no questions that could be asked")
    metric = config.early_stop_metric
    if metric == "loss":
        return Asked(tuple(fixed))
    if metric == "token_accuracy":  # the pass of the loss tells it
        return Asked(tuple(fixed))
    built.model.check_answers()
    part = part_of(config, samples, "held-out")
    order = np.random.default_rng([config.seed, 6]).permutation(len(part.samples))
    chosen = [part.samples[int(i)] for i in sorted(order[:_SCORED_SAMPLES])]
    if metric == "rouge_l":
        need("rouge_score.rouge_scorer", "scores", "ROUGE")
    questions = [one for one in questions_of(Part(part.config, part.data, chosen), built.model) if one.asks]
    if not questions:
        raise GgtuneError(f"--early-stop-metric {metric}: the held-out samples have no questions: it takes loss alone")
    longest = max(len(built.model.tokenize(one.reference, parse_special=False)) for one in questions)
    most = min(_MOST_TOKENS, max(_LEAST_TOKENS, 3 * longest // 2))
    return Asked(tuple(fixed), tuple(questions), scored_tokens=most)


def _without_effect(config: TrainConfig) -> str:
    """Name a setting that was given and does nothing where nothing is held out."""
    changed = {
        "early_stop": config.early_stop > 0,
        "early_stop_metric": config.early_stop_metric != "loss",
        "eval_every": config.eval_every not in (EVAL_EVERY, "0"),
    }
    return next((flag(name) for name, is_given in changed.items() if is_given), "")


class Measuring:
    """Measures with the engine's adapter as it stands; changes nothing."""

    def __init__(self, built: Build, asked: Asked, allowed: Callable[[], AbstractContextManager[None]]) -> None:
        """``allowed`` marks stretches that a signal may end."""
        config: TrainConfig = built.config
        self._built = built
        self._asked = asked
        self._allowed = allowed
        self._metric = config.early_stop_metric
        self._evaluation = EvalInterval.parse(config.eval_every)
        self._sampling = EvalInterval.parse(config.sample_every)
        self._threads = resolved_threads(config.threads)
        self._accuracy = 0.0

    @property
    def has_questions(self) -> bool:
        """Whether fixed questions are asked."""
        return bool(self._asked.fixed)

    def due(self, step: int, monitor: Monitor, elapsed_s: float, *, ended: bool) -> list[str]:
        """Name what is to be measured after ``step``, which is the run's last where it has ``ended``."""
        plan, found = self._built.plan, []
        per_epoch = plan.steps_per_epoch
        if plan.held_out and (ended or self._evaluation.is_due(step, per_epoch, elapsed_s - monitor.evaluated_s)):
            found.append(HELD_OUT)
        if self.has_questions and (ended or self._sampling.is_due(step, per_epoch, elapsed_s - monitor.sampled_s)):
            found.append(ANSWERS)
        return found

    def note_times(self, monitor: Monitor, due: Sequence[str], elapsed_s: float) -> None:
        """Note when it was measured, where that decides when it is due again."""
        if self._evaluation.seconds is not None and HELD_OUT in due:
            monitor.evaluated_s = elapsed_s
        if self._sampling.seconds is not None and ANSWERS in due:
            monitor.sampled_s = elapsed_s

    def n_left(self, step: int, total_steps: int, seconds_per_step: float) -> tuple[int, int]:
        """How many evaluations and rounds of questions there will be about, from ``step`` to the run's end."""
        plan, found = self._built.plan, []
        for interval, is_on in ((self._evaluation, bool(plan.held_out)), (self._sampling, self.has_questions)):
            to_end, so_far = (interval.times(n, plan.steps_per_epoch, seconds_per_step) for n in (total_steps, step))
            at_end = not interval.is_due(total_steps, plan.steps_per_epoch, 0.0)
            found.append((to_end - so_far + at_end) * is_on)
        return found[0], found[1]

    def held_out_loss(self) -> float:
        """Mean over the target tokens, by their weights; NaN where they have none."""
        engine = self._built.engine
        is_counted = self._metric == "token_accuracy"
        loss_sum = weight_sum = 0.0
        n_right = n_targets = 0
        for batch in self._built.plan.held_out:
            with self._allowed():
                result = (
                    engine.evaluate(*batch.arrays, predictions=True) if is_counted else engine.evaluate(*batch.arrays)
                )
            loss_sum += result.loss_sum
            weight_sum += result.weight_sum
            if is_counted and result.predictions is not None:
                n_right += int(np.count_nonzero((batch.targets == result.predictions) & (batch.weights != 0)))
                n_targets += result.n_targets
        self._accuracy = n_right / n_targets if n_targets else 0.0
        return loss_sum / weight_sum if weight_sum else float("nan")

    def scores(self) -> dict[str, float]:
        """Scores on held-out samples, the chosen one among them; none where the loss decides.

        The share of right tokens is that of the last :meth:`held_out_loss`.
        """
        asked = self._asked
        if self._metric == "token_accuracy":
            return {"token_accuracy": self._accuracy}
        if not asked.scored:
            return {}
        answers = self._answers([one.prompt for one in asked.scored], asked.scored_tokens)
        names = [name for name in GENERATED if name != "rouge_l" or self._metric == name]
        return {
            name: sum(GENERATED[name](a.text, [q.reference]) for q, a in zip(asked.scored, answers, strict=True))
            / len(answers)
            for name in names
        }

    def sample_lines(self, step: int, epoch: float) -> list[dict[str, Any]]:
        """Ask the fixed questions; the lines for ``samples.jsonl``."""
        fixed = self._asked.fixed
        answers = self._answers([one.prompt for one in fixed], SAMPLE_TOKENS)
        return [
            {
                "step": step,
                "epoch": epoch,
                "question": one.question,
                "reference": one.reference,
                "answer": answer.text,
                "ended": answer.ended,
                "n_tokens": answer.n_tokens,
            }
            for one, answer in zip(fixed, answers, strict=True)
        ]

    def _answers(self, prompts: list[tuple[int, ...]], max_tokens: int) -> list[Answer]:
        built = self._built
        if built.model.n_ctx_train:
            max_tokens = max(1, min(max_tokens, built.model.n_ctx_train - max(map(len, prompts))))
        template = built.samples.data.template
        with self._allowed():
            return greedy_answers(
                built.model,
                built.adapter,
                prompts,
                stops=template.stops if template is not None else (),
                max_tokens=max_tokens,
                threads=self._threads,
            )
