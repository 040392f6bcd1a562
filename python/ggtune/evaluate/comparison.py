"""Evaluations of the same samples against each other: paired differences, and which rows got better or worse."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import AnsweredSample
from ggtune.evaluate.error_kinds import error_kinds
from ggtune.evaluate.evaluation_scores import difference
from ggtune.scores.metrics import METRICS, Metric
from ggtune.scores.statistics import LEVEL, Array, Difference, Estimate, bootstrap_sums, paired_sums, ratio

FORMAT = 1
_UNTESTED = ("perplexity",)  # says no more than the loss does
_ROW_SCORES = ("f1", "rouge_l", "exact_match", "chrf", "bleu")  # what rows are sorted by: the first that is there
_CHANGED = 1e-9
PER_CHARACTER = replace(METRICS["loss"], title="Loss (nats per character)")


@dataclass(frozen=True)
class Measured:
    """What is compared: a name, and what was measured of each sample, in the order of the others."""

    label: str
    answers: Sequence[AnsweredSample]
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Verdict:
    """One score of one subject against the first: the difference, and the p value corrected for all that are tested."""

    difference: Difference
    p_adjusted: float
    n: int  # samples or questions

    @property
    def is_shown(self) -> bool:
        """Whether chance alone gives such a difference too rarely to believe."""
        return self.p_adjusted < 1 - LEVEL

    def better(self, metric: Metric) -> bool | None:
        """True, False, or None where no difference can be shown."""
        if not self.is_shown or metric.higher_is_better is None:
            return None
        return (self.difference.value > 0) == metric.higher_is_better

    def text(self, metric: Metric) -> str:
        """``better by 0.12 ± 0.05, p = 0.01``."""
        better = self.better(metric)
        if better is None:
            same = self.difference.value == 0 and self.difference.p_value == 1
            rows = f"{self.n} row{'s' * (self.n != 1)}"
            return f"the same on all {rows}" if same else f"no difference can be shown with {rows}"
        found, digits = self.difference, metric.digits
        p = "p < 0.001" if self.p_adjusted < 0.001 else f"p = {self.p_adjusted:.2g}"
        return (
            f"{'better' if better else 'worse'} by {abs(found.value):.{digits}f} ± {found.half_width:.{digits}f}, {p}"
        )

    def to_dict(self, metric: Metric) -> dict[str, Any]:
        """Plain values."""
        return {**self.difference.to_dict(), "p_adjusted": _finite(self.p_adjusted), "verdict": self.text(metric)}


@dataclass(frozen=True)
class ScoreRow:
    """A score of all subjects; ``verdicts`` are of all but the first, None where it is not tested."""

    metric: Metric
    values: tuple[Estimate | None, ...]
    verdicts: tuple[Verdict | None, ...]


@dataclass(frozen=True)
class Change:
    """A sample, and what each subject makes of it."""

    samples: tuple[AnsweredSample, ...]
    kinds: tuple[str, ...]  # of the answers; "" where nothing was generated
    changes: tuple[float, ...]  # of the score that rows are sorted by, against the first subject; above 0 is better

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        first = self.samples[0]
        return {
            "row": first.row,
            "where": first.where,
            "question": first.question,
            "reference": first.reference,
            "category": first.category,
            "answers": [sample.answer for sample in self.samples],
            "ended": [sample.ended for sample in self.samples],
            "kinds": list(self.kinds),
            "losses": [_finite(per_target(sample)) for sample in self.samples],
            "scores": [dict(sample.scores) for sample in self.samples],
            "changes": [_finite(change) for change in self.changes],
        }


@dataclass(frozen=True)
class Comparison:
    """Subjects against the first of them, on the same samples."""

    labels: tuple[str, ...]
    n_samples: int
    n_questions: int  # that were answered, each once
    scores: tuple[ScoreRow, ...]
    n_tests: int
    by: Metric  # what rows are sorted by
    rows: tuple[Change, ...]  # in the order of the data

    @property
    def least_samples(self) -> int:
        """So many rows can show a difference at all: of fewer, all may be better by chance alone."""
        return math.ceil(math.log2(2 * max(1, self.n_tests) / (1 - LEVEL)))

    def better(self, subject: int = 1) -> list[Change]:
        """The rows that a subject does better than the first, the largest change first."""
        found = [row for row in self.rows if row.changes[subject] > _CHANGED]
        return sorted(found, key=lambda row: -row.changes[subject])

    def worse(self, subject: int = 1) -> list[Change]:
        """The rows that a subject does worse than the first, the largest change first."""
        found = [row for row in self.rows if row.changes[subject] < -_CHANGED]
        return sorted(found, key=lambda row: row.changes[subject])

    def kinds(self) -> list[dict[str, int]]:
        """How many answers of each kind each subject gives."""
        counts = [Counter(row.kinds[i] for row in self.rows if row.kinds[i]) for i in range(len(self.labels))]
        return [dict(count.most_common()) for count in counts]

    def moves(self, subject: int = 1) -> list[tuple[str, str, int]]:
        """How many answers went from one kind with the first subject to another, the most first."""
        pairs = Counter((row.kinds[0], row.kinds[subject]) for row in self.rows if row.kinds[0] and row.kinds[subject])
        return [(before, after, n) for (before, after), n in pairs.most_common() if before != after]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``comparison.json``."""
        return {
            "format": FORMAT,
            "labels": list(self.labels),
            "n_samples": self.n_samples,
            "n_questions": self.n_questions,
            "n_tests": self.n_tests,
            "scores": {
                row.metric.name: {
                    "title": row.metric.title,
                    "values": [value.to_dict() if value is not None else None for value in row.values],
                    "differences": [None, *(v.to_dict(row.metric) if v is not None else None for v in row.verdicts)],
                }
                for row in self.scores
            },
            "kinds": self.kinds(),
            "sorted_by": self.by.name,
            "n_better": [0, *(len(self.better(i)) for i in range(1, len(self.labels)))],
            "n_worse": [0, *(len(self.worse(i)) for i in range(1, len(self.labels)))],
            "rows": [row.to_dict() for row in self.rows],
        }


def compare(measured: Sequence[Measured], *, by: str | None = None, seed: int = 0) -> Comparison:
    """Compare each but the first with the first.

    ``by`` is the score that rows are sorted by (None: F1 where there are answers, else the loss). Raises
    :class:`GgtuneError` where the samples are not the same.
    """
    _check_same(measured)
    first = measured[0]
    same_tokens = all(_tokens(one) == _tokens(first) for one in measured)
    rows: list[ScoreRow] = []
    for name in METRICS:
        if name == "perplexity" and not same_tokens:  # per token of another vocabulary
            continue
        per_character = name == "loss" and not same_tokens
        values = tuple(one.scores.get(name) if not per_character else _per_character(one) for one in measured)
        if all(value is None for value in values):
            continue
        metric = PER_CHARACTER if per_character else METRICS[name]
        tested = name not in _UNTESTED and (name != "token_accuracy" or same_tokens)
        verdicts = tuple(
            _verdict(name, first, other, seed, per_character=per_character)
            if tested and metric.higher_is_better is not None
            else None
            for other in measured[1:]
        )
        rows.append(ScoreRow(metric, values, verdicts))
    rows, n_tests = _corrected(rows)
    sorted_by = _sorted_by(measured, by)
    answered = [[i for i, one in enumerate(each.answers) if one.answer is not None] for each in measured]
    kinds = [[""] * len(first.answers) for _ in measured]
    for found, each, indices in zip(kinds, measured, answered, strict=True):
        for i, kind in zip(indices, error_kinds([each.answers[i].to_dict() for i in indices]), strict=True):
            found[i] = kind if not each.answers[i].repeated else ""
    changes = tuple(
        Change(
            tuple(each.answers[i] for each in measured),
            tuple(found[i] for found in kinds),
            tuple(_change(sorted_by, first.answers[i], each.answers[i], same_tokens) for each in measured),
        )
        for i in range(len(first.answers))
    )
    n_questions = sum(one.answer is not None and not one.repeated for one in first.answers)
    labels = tuple(each.label for each in measured)
    return Comparison(labels, len(first.answers), n_questions, tuple(rows), n_tests, sorted_by, changes)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number (Holm 1979, A simple sequentially rejective multiple test procedure)."""
    order = np.argsort(p_values, kind="stable")
    found = np.empty(len(order))
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        found[i] = highest
    return [float(p) for p in found]


def _corrected(rows: Sequence[ScoreRow]) -> tuple[list[ScoreRow], int]:
    tested = [v for row in rows for v in row.verdicts if v is not None and np.isfinite(v.difference.p_value)]
    adjusted = iter(holm([v.difference.p_value for v in tested]))
    found = []
    for row in rows:
        verdicts = tuple(
            replace(v, p_adjusted=next(adjusted)) if v is not None and np.isfinite(v.difference.p_value) else v
            for v in row.verdicts
        )
        found.append(replace(row, verdicts=verdicts))
    return found, len(tested)


def _verdict(name: str, first: Measured, other: Measured, seed: int, *, per_character: bool) -> Verdict | None:
    n = len(first.answers)
    if per_character:
        found = paired_sums(_character_columns(first), _character_columns(other), ratio, seed=seed)
    else:
        measured = difference(name, first.answers, other.answers, seed=seed)
        if measured is None:
            return None
        found = measured
        if METRICS[name].of_answers:
            n = sum(one.answer is not None and not one.repeated for one in first.answers)
    return Verdict(found, found.p_value, n)


def _character_columns(one: Measured) -> Array:
    return np.array([[a.loss, len(a.reference)] for a in one.answers if a.reference], np.float64)


def _per_character(one: Measured) -> Estimate | None:
    columns = _character_columns(one)
    return bootstrap_sums(columns, ratio) if len(columns) else None


def _tokens(one: Measured) -> list[int]:
    return [answer.n_targets for answer in one.answers]


def _check_same(measured: Sequence[Measured]) -> None:
    if len(measured) < 2:
        raise GgtuneError("a comparison takes at least two subjects")
    first = measured[0]
    for other in measured[1:]:
        if [(a.row, a.question, a.reference) for a in first.answers] != [
            (a.row, a.question, a.reference) for a in other.answers
        ]:
            raise GgtuneError(
                f"{first.label} and {other.label} were evaluated on other samples: evaluate both on the same data, "
                "with the same --split, --max-samples and --seed"
            )
        if sum(a.answer is not None for a in first.answers) != sum(a.answer is not None for a in other.answers):
            raise GgtuneError(f"one of {first.label} and {other.label} has answers and the other has none")


def _sorted_by(measured: Sequence[Measured], by: str | None) -> Metric:
    answers = [one for each in measured for one in each.answers if one.answer is not None]
    there = [name for name in _ROW_SCORES if answers and all(name in one.scores for one in answers)]
    if by is not None and by != "loss" and by not in there:
        raise GgtuneError(f"rows can't be sorted by {by!r}: there are {', '.join([*there, 'loss'])}")
    return METRICS[by or (there[0] if there else "loss")]


def _change(metric: Metric, before: AnsweredSample, after: AnsweredSample, same_tokens: bool) -> float:
    """How much better a sample got."""
    if metric.name == "loss":
        return _loss_of(before, same_tokens) - _loss_of(after, same_tokens)
    if before.answer is None or after.answer is None:
        return 0.0
    change = after.scores[metric.name] - before.scores[metric.name]
    return change if metric.higher_is_better else -change


def _loss_of(sample: AnsweredSample, same_tokens: bool) -> float:
    return per_target(sample) if same_tokens else sample.loss / max(1, len(sample.reference))


def per_target(sample: AnsweredSample) -> float:
    """Loss per token of the reference, NaN for a sample without a target."""
    return sample.loss / sample.weight if sample.weight > 0 else float("nan")


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
