"""Packing: several samples in one micro-batch, none of them split or seeing another."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from ggtune.data.samples import FloatArray, Sample
from ggtune.data.store import lengths_of
from ggtune.data.tokenization import IntArray
from ggtune.errors import DataError

MAX_SEQUENCES = 256  # sequence ids of one llama.cpp batch


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Arrays of shape ``(n_tokens,)`` for :meth:`ggtune._core.Trainer.accumulate`.

    ``samples`` are the indices of the packed samples, in the order of their sequence ids.
    """

    tokens: IntArray
    positions: IntArray
    sequences: IntArray
    targets: IntArray
    weights: FloatArray
    samples: tuple[int, ...]

    @property
    def arrays(self) -> tuple[IntArray, IntArray, IntArray, IntArray, FloatArray]:
        """What the methods of :class:`ggtune._core.Trainer` take, in their order."""
        return self.tokens, self.positions, self.sequences, self.targets, self.weights

    @property
    def n_tokens(self) -> int:
        """Rows."""
        return len(self.tokens)

    @property
    def n_targets(self) -> int:
        """Rows whose weight is not zero."""
        return int(np.count_nonzero(self.weights))


def pack(samples: Sequence[Sample], max_tokens: int, max_sequences: int = MAX_SEQUENCES) -> list[MicroBatch]:
    """Pack samples into few micro-batches of at most ``max_tokens`` rows, about equally long.

    Their number is that of best-fit decreasing (Johnson 1974); the samples are then dealt out again, the longest first,
    each to the micro-batch that is shortest so far (Graham 1969), as far as that keeps all of them within the limit:
    equal ones run fastest and need the least memory. No filler is added. The same samples in the same order give the
    same micro-batches. Raises :class:`DataError` for a sample longer than ``max_tokens``.
    """
    return list(PackedSamples(samples, max_tokens, max_sequences))


class PackedSamples(Sequence[MicroBatch]):
    """What :func:`pack` gives, made when it is asked for: the samples may be more than fit into memory."""

    def __init__(self, samples: Sequence[Sample], max_tokens: int, max_sequences: int = MAX_SEQUENCES) -> None:
        """Raise as :func:`pack`."""
        n_rows = (lengths_of(samples) - 1).tolist()
        if n_rows and max(n_rows) > max_tokens:
            row = samples[n_rows.index(max(n_rows))].row
            raise DataError(f"The sample of row {row} needs {max(n_rows)} tokens: a micro-batch has {max_tokens}.")
        self._samples, self._chosen = samples, pack_lengths(n_rows, max_tokens, max_sequences)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> MicroBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[MicroBatch]: ...
    def __getitem__(self, index: int | slice) -> MicroBatch | list[MicroBatch]:
        if isinstance(index, slice):
            return [_micro_batch(self._samples, chosen) for chosen in self._chosen[index]]
        return _micro_batch(self._samples, self._chosen[index])


def pack_lengths(n_rows: Sequence[int], max_tokens: int, max_sequences: int = MAX_SEQUENCES) -> list[list[int]]:
    """Choose the samples of each micro-batch of :func:`pack` by the rows of each, which are at most ``max_tokens``."""
    order = sorted(range(len(n_rows)), key=lambda i: -n_rows[i])  # stable
    fitted = _best_fit(n_rows, order, max_tokens, max_sequences)
    level = _deal_out(n_rows, order, len(fitted), max_sequences)
    longest = max((sum(n_rows[i] for i in chosen) for chosen in level), default=0)
    return level if level and longest <= max_tokens else fitted


def efficiency(n_tokens: Sequence[int]) -> float:
    """Rows of all micro-batches, as a share of as many of the longest one, 0 to 1."""
    return sum(n_tokens) / max(1, len(n_tokens) * max(n_tokens, default=0))


def _best_fit(n_rows: Sequence[int], order: Sequence[int], max_tokens: int, max_sequences: int) -> list[list[int]]:
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free rows, bin), ascending; full bins are gone
    for i in order:
        place = bisect.bisect_left(free, (n_rows[i], 0))
        if place < len(free):
            n_free, chosen = free.pop(place)
            bins[chosen].append(i)
        else:
            n_free, chosen = max_tokens, len(bins)
            bins.append([i])
        if n_free > n_rows[i] and len(bins[chosen]) < max_sequences:
            bisect.insort(free, (n_free - n_rows[i], chosen))
    return bins


def _deal_out(n_rows: Sequence[int], order: Sequence[int], n_bins: int, max_sequences: int) -> list[list[int]]:
    """Return no bins where the samples are too many for them."""
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    loads = [(0, b) for b in range(n_bins)]  # a heap
    for i in order:
        if not loads:
            return []
        load, chosen = heapq.heappop(loads)
        bins[chosen].append(i)
        if len(bins[chosen]) < max_sequences:
            heapq.heappush(loads, (load + n_rows[i], chosen))
    return bins


def _micro_batch(samples: Sequence[Sample], chosen: Sequence[int]) -> MicroBatch:
    packed = [samples[i] for i in chosen]
    lengths = [sample.n_rows for sample in packed]
    return MicroBatch(
        tokens=np.concatenate([sample.tokens[:-1] for sample in packed]),
        positions=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        sequences=np.repeat(np.arange(len(packed), dtype=np.int32), lengths),
        targets=np.concatenate([sample.tokens[1:] for sample in packed]),
        weights=np.concatenate([sample.weights[1:] for sample in packed]),
        samples=tuple(chosen),
    )
