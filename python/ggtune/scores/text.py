"""Scores of one answer against its references, of which there may be several: the best one counts.

Exact match and F1 are SQuAD's (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; empty texts as its version 2.0
has them), between 0 and 1, and so is ROUGE-L (Lin 2004), by rouge-score. BLEU and chrF of single answers, 0 to 100, are
sacrebleu's; those of many answers are in :mod:`ggtune.scores.corpus`.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ggtune.extras import need
from ggtune.scores.words import has_no_spaces, is_mostly_other_script, is_without_spaces, words

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, no ASCII punctuation, no English articles, split at white space.

    In texts of scripts without spaces each character is a word, and all of Unicode's punctuation is left out, as
    MLQA has it (Lewis et al. 2020, arXiv:1910.07475).
    """
    text = unicodedata.normalize("NFC", text).lower().translate(_PUNCTUATION)
    if has_no_spaces(text):
        pieces = []
        for character in text:
            if unicodedata.category(character).startswith("P"):
                continue
            pieces.append(f" {character} " if is_without_spaces(character) else character)
        text = "".join(pieces)
    return _ARTICLES.sub(" ", text).split()


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the normalized answer is one of the normalized references, else 0."""
    found = normalized_words(answer)
    return float(any(found == normalized_words(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of the normalized words, as bags; the best over the references."""
    return _best(_f1, answer, references)


def _f1(answer: str, reference: str) -> float:
    given, wanted = normalized_words(answer), normalized_words(reference)
    if not given or not wanted:
        return float(given == wanted)
    n_same = sum((Counter(given) & Counter(wanted)).values())
    if not n_same:
        return 0.0
    precision, recall = n_same / len(given), n_same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of words, without stemming; the best over the references.

    rouge-score's own words are runs of a-z and 0-9: where most letters of a reference are others, the words are those
    of :func:`ggtune.scores.words.words`. Raises :class:`ggtune.errors.GgtuneError` where the library is missing.
    """
    return _best(_rouge_l, answer, references)


def _rouge_l(answer: str, reference: str) -> float:
    scorer = _rouge_scorer(any_script=is_mostly_other_script(reference))
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


class _AnyScript:
    """Takes the place of rouge-score's tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge_scorer(*, any_script: bool) -> Any:
    module = need("rouge_score.rouge_scorer", "scores", "ROUGE")
    return module.RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_AnyScript() if any_script else None)


def length_ratio(answer: str, references: Sequence[str]) -> float:
    """Words of the answer by those of the reference that is nearest in length."""
    n_given, n_wanted = lengths(answer, references)
    return n_given / n_wanted


def lengths(answer: str, references: Sequence[str]) -> tuple[int, int]:
    """Words of the answer, and of the reference that is nearest in length (of two the shorter one), at least 1."""
    n_given = len(words(answer))
    wanted = [max(1, len(words(reference))) for reference in references]
    return n_given, min(wanted, key=lambda n: (abs(n - n_given), n))


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    return max(score(answer, reference) for reference in references)
