"""How probable a model, with or without adapters, finds given texts: many at once, in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import ContinuationScorer, Model

FloatArray = NDArray[np.float32]
Adapters = Sequence[tuple[str | Path, float]]
Text = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Token ids that are given, and those of each of its continuations."""

_TOKENS = 1024  # of a batch
_ENDS = 64  # of a batch


class Likelihood:
    """A model that texts are held against."""

    def __init__(self, model: "Model | str | Path", adapters: Adapters = (), *, threads: int = 0) -> None:
        """Raise :class:`GgtuneError` for a model that can't decode, or an adapter of another one."""
        self.model = core.Model(str(model)) if isinstance(model, (str, Path)) else model
        self._adapters = [(str(path), scale) for path, scale in adapters]
        self._threads = resolved_threads(threads)
        self._scorer: ContinuationScorer | None = None
        self._room = (0, 0)

    def each(self, texts: Sequence[Text]) -> Iterator[list[FloatArray]]:
        """Give, text by text, log p of each token of each continuation; who needs no more may stop.

        Raises :class:`GgtuneError` for an empty text or continuation.
        """
        for batch in _batches(texts):
            listed = [
                (np.asarray(prefix).tolist(), [np.asarray(end).tolist() for end in ends]) for prefix, ends in batch
            ]
            yield from self._made(batch).log_probs(listed)

    def sums(self, texts: Sequence[Text]) -> NDArray[np.float64]:
        """Log-probability of the only continuation of each text, shape ``(n_texts,)``."""
        return np.array([float(found[0].sum(dtype=np.float64)) for found in self.each(texts)])

    def _made(self, batch: Sequence[Text]) -> "ContinuationScorer":
        needed = max(_TOKENS, sum(map(_size, batch))), max(_ENDS, sum(len(ends) for _, ends in batch))
        if self._scorer is None or needed[0] > self._room[0] or needed[1] > self._room[1]:
            self._scorer = None  # its memory is free before the next one needs some
            self._room = needed
            self._scorer = core.ContinuationScorer(
                self.model, self._adapters, n_tokens=needed[0], n_sequences=needed[1], threads=self._threads
            )
        return self._scorer


def _size(text: Text) -> int:
    prefix, ends = text
    return len(prefix) + sum(len(end) - 1 for end in ends)


def _batches(texts: Sequence[Text]) -> Iterator[Sequence[Text]]:
    batch: list[Text] = []
    n_tokens = n_ends = 0
    for text in texts:
        if not len(text[0]) or not all(len(end) for end in text[1]):
            raise GgtuneError("a text without a token has no probability")
        size = _size(text)
        if batch and (n_tokens + size > _TOKENS or n_ends + len(text[1]) > _ENDS):
            yield batch
            batch, n_tokens, n_ends = [], 0, 0
        batch.append(text)
        n_tokens += size
        n_ends += len(text[1])
    if batch:
        yield batch
