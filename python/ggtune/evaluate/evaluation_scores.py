"""Samples and their answers to scores: each one a function of sums over the samples.

So each gets its interval by :func:`~ggtune.scores.statistics.bootstrap_sums`, and two evaluations of the same samples
are compared by :func:`~ggtune.scores.statistics.paired_sums`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import AnsweredSample
from ggtune.extras import need
from ggtune.scores import text
from ggtune.scores.corpus import Bleu, Chrf, CorpusScore
from ggtune.scores.metrics import METRICS
from ggtune.scores.repetition import repetition
from ggtune.scores.statistics import (
    Array,
    Difference,
    Estimate,
    Statistic,
    bootstrap_mean,
    bootstrap_sums,
    paired_sums,
    ratio,
)

_SHARES = ("exact_match", "f1", "rouge_l", "ended", "repetition")  # means of values between 0 and 1


def check_metrics(names: Collection[str]) -> None:
    """Raise :class:`GgtuneError` for an unknown score, or one whose library is missing."""
    if unknown := [name for name in names if name not in METRICS]:
        raise GgtuneError(f"there is no score {', '.join(unknown)}; there are {', '.join(METRICS)}")
    missing: dict[str, list[str]] = {}
    last: GgtuneError | None = None
    for name in names:
        library = METRICS[name].library
        try:
            if library:
                need(library, "scores", METRICS[name].title)
        except GgtuneError as error:
            missing.setdefault(library, []).append(name)
            last = error
    if last is not None:
        without = [name for name in METRICS if name in names and METRICS[name].library not in missing]
        raise GgtuneError(
            f"{', '.join(METRICS[name].title for names in missing.values() for name in names)}: "
            f"{' and '.join(missing)} can't be imported: pip install 'ggtune[scores]', or go without: --metrics "
            f"{','.join(without)}"
        ) from last


class AnswerScorer:
    """Scores of single answers; ``references`` are those of all samples, which say what script they are in."""

    def __init__(self, references: Sequence[str], names: Collection[str]) -> None:
        """Raise :class:`GgtuneError` where a library of one of the scores ``names`` is missing."""
        self._names = set(names)
        self._bleu = Bleu(references) if "bleu" in names else None
        self._chrf = Chrf() if "chrf" in names else None

    def signatures(self) -> dict[str, str]:
        """All that BLEU and chrF depend on."""
        corpus: dict[str, CorpusScore | None] = {"bleu": self._bleu, "chrf": self._chrf}
        return {name: score.signature for name, score in corpus.items() if score is not None}

    def scores(self, answer: str, references: Sequence[str]) -> dict[str, float]:
        """Score one answer."""
        found: dict[str, Callable[[], float]] = {
            "exact_match": lambda: text.exact_match(answer, references),
            "f1": lambda: text.f1(answer, references),
            "rouge_l": lambda: text.rouge_l(answer, references),
            "bleu": lambda: self._bleu.single(answer, references) if self._bleu else 0.0,
            "chrf": lambda: self._chrf.single(answer, references) if self._chrf else 0.0,
            "repetition": lambda: repetition(answer),
            "length_ratio": lambda: text.length_ratio(answer, references),
        }
        return {name: float(score()) for name, score in found.items() if name in self._names}


@dataclass(frozen=True)
class Sums:
    """What of each sample goes into a score, ``columns`` of shape ``(n_samples, n_columns)``, and the score of sums."""

    columns: Array
    statistic: Statistic
    shares: Array | None = None  # the samples' own scores, where the score is their mean and they lie between 0 and 1

    def estimate(self, seed: int = 0) -> Estimate:
        """The score with its interval."""
        if self.shares is not None:
            return bootstrap_mean(self.shares, seed=seed, share=True)
        return bootstrap_sums(self.columns, self.statistic, seed=seed)


def sums_of(name: str, answers: Sequence[AnsweredSample]) -> Sums | None:
    """What a score is made of; None where the samples don't have it.

    Answers to the same question count once. Raises :class:`GgtuneError` where a library is missing.
    """
    if not METRICS[name].of_answers:
        return _of_losses(name, answers)
    answered = [one for one in answers if one.answer is not None and not one.repeated]
    if not answered:
        return None
    if name in ("bleu", "chrf"):
        references = [reference for one in answered for reference in one.all_references]
        corpus: CorpusScore = Bleu(references) if name == "bleu" else Chrf()
        columns = np.array([corpus.columns(one.answer or "", one.all_references) for one in answered])
        return Sums(columns.astype(np.float64), corpus.score)
    if name == "length_ratio":
        lengths = [text.lengths(one.answer or "", one.all_references) for one in answered]
        return Sums(np.array(lengths, np.float64), ratio)
    if name == "ended":
        values = np.array([float(bool(one.ended)) for one in answered])
    elif any(name not in one.scores for one in answered):
        return None
    else:
        values = np.array([one.scores[name] for one in answered])
    return Sums(np.stack([values, np.ones_like(values)], axis=1), ratio, values if name in _SHARES else None)


def _of_losses(name: str, answers: Sequence[AnsweredSample]) -> Sums | None:
    measured = [one for one in answers if one.weight > 0 and one.n_targets > 0]
    if not measured:
        return None
    if name == "token_accuracy":
        return Sums(np.array([[one.n_correct_tokens, one.n_targets] for one in measured], np.float64), ratio)
    columns = np.array([[one.loss, one.weight] for one in measured], np.float64)
    return Sums(columns, ratio if name == "loss" else _perplexity)


def _perplexity(sums: Array) -> Array:
    with np.errstate(over="ignore"):
        found: Array = np.exp(ratio(sums))
    return found


def estimates(answers: Sequence[AnsweredSample], names: Collection[str], *, seed: int = 0) -> dict[str, Estimate]:
    """All scores that the samples have of these, in the order of METRICS."""
    found = {name: sums_of(name, answers) for name in METRICS if name in names}
    return {name: sums.estimate(seed) for name, sums in found.items() if sums is not None}


def difference(
    name: str, first: Sequence[AnsweredSample], second: Sequence[AnsweredSample], *, seed: int = 0
) -> Difference | None:
    """How much higher a score is in the second of two evaluations of the same samples; None where one lacks it.

    Raises :class:`ValueError` where they are not of the same samples, in the same order.
    """
    a, b = sums_of(name, first), sums_of(name, second)
    return None if a is None or b is None else paired_sums(a.columns, b.columns, a.statistic, seed=seed)


def by_category(answers: Sequence[AnsweredSample], name: str, *, seed: int = 0) -> Mapping[str, tuple[int, Estimate]]:
    """Number of samples and a score for each category, in the order of their names; none where there are none."""
    groups: dict[str, list[AnsweredSample]] = {}
    for one in answers:
        if one.category:
            groups.setdefault(one.category, []).append(one)
    found = {group: (len(of_it), sums_of(name, of_it)) for group, of_it in sorted(groups.items())}
    return {group: (n, sums.estimate(seed)) for group, (n, sums) in found.items() if sums is not None}
