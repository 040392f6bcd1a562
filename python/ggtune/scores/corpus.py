"""BLEU and chrF of many answers: functions of sums over them, not means of each one's score.

sacrebleu counts, and gives the scores of single answers. The score of sums stands here as well, for thousands of draws
of the bootstrap at once.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ggtune.extras import need
from ggtune.scores.statistics import Array
from ggtune.scores.words import is_without_spaces

_ORDER = 4  # of BLEU
_CHAR_ORDER, _BETA = 6, 2  # of chrF


class CorpusScore(Protocol):
    """A score of many answers; :func:`~ggtune.scores.statistics.bootstrap_sums` takes ``score`` for its statistic."""

    @property
    def signature(self) -> str:
        """All that the figure depends on, as sacrebleu writes it."""

    def columns(self, answer: str, references: Sequence[str]) -> list[float]:
        """What of an answer goes into the sums."""

    def single(self, answer: str, references: Sequence[str]) -> float:
        """Score of one answer, 0 to 100."""

    def score(self, sums: Array) -> Array:
        """Scores, 0 to 100, of sums of shape ``(n, n_columns)``."""


class Bleu:
    """Corpus BLEU (Papineni et al. 2002) with sacrebleu's defaults (Post 2018, arXiv:1804.08771).

    The tokenizer is 13a; zh or char where most letters of ``references`` are of scripts without spaces. Several
    references: all of their n-grams count, and the length that is nearest. Single answers get the effective order.
    """

    def __init__(self, references: Sequence[str]) -> None:
        """Raise :class:`ggtune.errors.GgtuneError` where sacrebleu is missing."""
        module = need("sacrebleu.metrics", "scores", "BLEU")
        self._library = module.BLEU(tokenize=_tokenizer(references), effective_order=True)
        self._corpus = module.BLEU(tokenize=_tokenizer(references))

    @cached_property
    def signature(self) -> str:
        """As sacrebleu writes it."""
        return _signature(self._corpus)

    def columns(self, answer: str, references: Sequence[str]) -> list[float]:
        """Length, length of the reference, matching n-grams, n-grams of the answer."""
        found = self._library.sentence_score(answer, list(references))
        return [found.sys_len, found.ref_len, *found.counts, *found.totals]

    def single(self, answer: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return float(self._library.sentence_score(answer, list(references)).score)

    def score(self, sums: Array) -> Array:
        """Geometric mean of the precisions times the brevity penalty; a precision of 0 is smoothed ("exp")."""
        length, wanted = sums[:, 0], sums[:, 1]
        matches, totals = sums[:, 2 : 2 + _ORDER], sums[:, 2 + _ORDER :]
        with np.errstate(divide="ignore", invalid="ignore"):
            penalty = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
            halvings = np.cumsum(matches == 0, axis=1)
            precisions = np.where(matches > 0, matches / totals, 1 / (2.0**halvings * totals))
            found: Array = 100 * penalty * np.exp(np.mean(np.log(precisions), axis=1))
        # sacrebleu gives 0 without any match, and where no answer has four words
        found[~(matches > 0).any(axis=1) | (totals == 0).any(axis=1)] = 0.0
        return found


class Chrf:
    """Corpus chrF2 (Popović 2015) with sacrebleu's defaults; of several references the one that fits best counts."""

    def __init__(self) -> None:
        """Raise :class:`ggtune.errors.GgtuneError` where sacrebleu is missing."""
        self._library = need("sacrebleu.metrics", "scores", "chrF").CHRF()
        self._helpers = need("sacrebleu.metrics.helpers", "scores", "chrF")

    @cached_property
    def signature(self) -> str:
        """As sacrebleu writes it."""
        return _signature(self._library)

    def columns(self, answer: str, references: Sequence[str]) -> list[float]:
        """For each order the character n-grams of the answer, of the reference, and those in both."""
        given = self._helpers.extract_all_char_ngrams(answer, _CHAR_ORDER, False)
        best: list[float] = []
        highest = -1.0
        for reference in references:
            counts: list[float] = []
            for mine, wanted in zip(
                given, self._helpers.extract_all_char_ngrams(reference, _CHAR_ORDER, False), strict=True
            ):
                counts += [mine.total() if wanted else 0, wanted.total(), (mine & wanted).total()]
            score = float(self.score(np.array([counts]))[0])
            if score > highest:
                best, highest = counts, score
        return best

    def single(self, answer: str, references: Sequence[str]) -> float:
        """Score of one answer."""
        return float(self._library.sentence_score(answer, list(references)).score)

    def score(self, sums: Array) -> Array:
        """F of the mean precision and recall over the orders that both have n-grams of; recall counts twice."""
        given, wanted, matches = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
        counts = (given > 0) & (wanted > 0)
        n_orders = np.maximum(1, counts.sum(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(counts, matches / given, 0.0).sum(axis=1) / n_orders
            recall = np.where(counts, matches / wanted, 0.0).sum(axis=1) / n_orders
            found = 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)
        return np.where(precision + recall > 0, found, 0.0)


def _tokenizer(references: Sequence[str]) -> str:
    letters = [character for reference in references for character in reference if character.isalpha()]
    without = [character for character in letters if is_without_spaces(character)]
    if 2 * len(without) <= len(letters):
        return "13a"
    kana_or_other = sum(not "\u3400" <= character <= "\u9fff" for character in without)
    return "zh" if 20 * kana_or_other <= len(without) else "char"


def _signature(metric: Any) -> str:
    metric.corpus_score(["a"], [["a"]])  # it has none before
    return str(metric.get_signature())
