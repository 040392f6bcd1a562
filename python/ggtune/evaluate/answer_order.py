"""Do the answers of a data set belong to their questions? A model tells that, and the words that both share."""

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggtune.data.samples import Sample
from ggtune.data.tokenization import Tokenizer
from ggtune.evaluate.log_probs import Likelihood, Text
from ggtune.scores.statistics import Difference, paired_difference

Values = NDArray[np.float64]

MOST_ROWS = 48  # that are looked at
LEAST_ROWS = 12  # of fewer nothing is said
_STEADY_ROWS = 24  # so many are looked at however long it takes: chance would speak otherwise
_MOST_TOKENS = 6000  # of them together
_POOL = 4000  # rows whose questions an answer is compared with
_COMMON = 0.2  # a word in so many of the questions says nothing
_WORD = re.compile(r"\w{2,}")


@dataclass(frozen=True)
class Dependence:
    """How much less probable answers are behind the question of another row."""

    n_rows: int
    gain: Difference  # nats per token that an answer's own question is worth

    @property
    def is_there(self) -> bool:
        """Whether the question matters, beyond what chance explains."""
        return self.gain.value > 0 and self.gain.is_significant


def rows_to_look_at(samples: Sequence[Sample], seed: int = 0) -> list[Sample]:
    """Draw samples that have a question and an answer, each pair of neighbours with different ones."""
    found: list[Sample] = []
    n_tokens = 0
    for i in np.random.default_rng(seed).permutation(len(samples)):
        sample = samples[int(i)]
        if not sample.n_prompt or sample.n_prompt >= len(sample.tokens):
            continue
        if any(_prompt(other) == _prompt(sample) or _answer(other) == _answer(sample) for other in found[-1:]):
            continue
        n_tokens += len(sample.tokens) + len(sample.tokens) - sample.n_prompt
        if len(found) >= MOST_ROWS or (n_tokens > _MOST_TOKENS and len(found) >= LEAST_ROWS):
            break
        found.append(sample)
    if len(found) > 1 and (_prompt(found[0]) == _prompt(found[-1]) or _answer(found[0]) == _answer(found[-1])):
        found.pop()
    return found


def dependence(likelihood: Likelihood, rows: Sequence[Sample], seconds: float = math.inf) -> Dependence:
    """Compare each answer behind its own question with it behind that of the row before."""
    started = time.monotonic()
    following = [*rows[1:], *rows[:1]]
    texts: list[Text] = [
        (_prompt(row), [_answer(row), _answer(other)]) for row, other in zip(rows, following, strict=True)
    ]
    own, others = [], []
    for own_log_probs, other_log_probs in likelihood.each(texts):
        own.append(-float(own_log_probs.sum(dtype=np.float64)))
        others.append(-float(other_log_probs.sum(dtype=np.float64)))
        if time.monotonic() - started > seconds and len(own) >= _STEADY_ROWS:
            break
    n = len(own)
    # the answer of row i + 1 stands behind the question of row i
    whole = n == len(rows)
    lengths = np.array([len(_answer(row)) for row in rows], np.float64)
    at = np.arange(n) if whole else np.arange(1, n)
    behind_other = np.array([others[i - 1] for i in at])
    weights = lengths[at]
    gain = paired_difference(np.array(own)[at] / weights, behind_other / weights, weights)
    return Dependence(len(at), gain)


@dataclass(frozen=True)
class Match:
    """A row whose answer has more words in common with the question of another row."""

    row: Sample
    other: Sample


def word_matches(tokenizer: Tokenizer, rows: Sequence[Sample], pool: Sequence[Sample], seed: int = 0) -> list[Match]:
    """Find, for each row's answer, the other question that shares the rarest words with it; none for some rows."""
    chosen = np.random.default_rng([seed, 1]).permutation(len(pool))[:_POOL]
    candidates = [sample for i in chosen if (sample := pool[int(i)]).n_prompt]
    words = [_words(tokenizer, _prompt(sample)) for sample in candidates]
    known = {tuple(_prompt(sample)) for sample in candidates}
    for row in rows:  # so that an own question is weighed as the others are
        if tuple(_prompt(row)) not in known:
            candidates.append(row)
            words.append(_words(tokenizer, _prompt(row)))
    counts = Counter(word for found in words for word in found)
    n = len(candidates)
    weight = {word: math.log(n / count) for word, count in counts.items() if count <= max(1, _COMMON * n)}
    by_word: dict[str, list[int]] = defaultdict(list)
    for i, found in enumerate(words):
        for word in found:
            if word in weight:
                by_word[word].append(i)
    norms = [math.sqrt(sum(weight.get(word, 0.0) ** 2 for word in found)) or 1.0 for found in words]
    matches = []
    for row in rows:
        scores: Counter[int] = Counter()
        for word in _words(tokenizer, _answer(row)):
            for i in by_word.get(word, ()):
                scores[i] += weight[word] ** 2 / norms[i]  # type: ignore[assignment]
        own, answer = _prompt(row), _answer(row)
        best = max(
            (i for i in scores if _prompt(candidates[i]) != own and _answer(candidates[i]) != answer),
            key=lambda i: (scores[i], -i),
            default=None,
        )
        if best is not None:
            matches.append(Match(row, candidates[best]))
    return matches


def match_gain(
    likelihood: Likelihood, matches: Sequence[Match], seconds: float = math.inf
) -> tuple[Difference, Values]:
    """Nats per token that the matched questions are worth more than the own ones; and of each match looked at."""
    started = time.monotonic()
    texts: list[Text] = []
    for match in matches:
        texts += [(_prompt(match.row), [_answer(match.row)]), (_prompt(match.other), [_answer(match.row)])]
    losses = []
    for found in likelihood.each(texts):
        losses.append(-float(found[0].sum(dtype=np.float64)))
        if time.monotonic() - started > seconds and len(losses) >= 2 * _STEADY_ROWS:
            break
    n = len(losses) // 2
    weights = np.array([len(_answer(match.row)) for match in matches[:n]], np.float64)
    own, other = (np.array(losses[part : 2 * n : 2]) / weights for part in (0, 1))
    return paired_difference(other, own, weights), own - other


def _prompt(sample: Sample) -> list[int]:
    tokens: list[int] = sample.tokens[: sample.n_prompt].tolist()
    return tokens


def _answer(sample: Sample) -> list[int]:
    tokens: list[int] = sample.tokens[sample.n_prompt :].tolist()
    return tokens


def _words(tokenizer: Tokenizer, tokens: Sequence[int]) -> set[str]:
    text = tokenizer.detokenize(list(tokens)).decode("utf-8", "replace")
    return set(_WORD.findall(text.lower()))
