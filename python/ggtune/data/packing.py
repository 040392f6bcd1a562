"""Packing: several samples in one micro-batch, none of them split or seeing another."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ggtune.data.samples import FloatArray, Sample
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
    order = sorted(range(len(samples)), key=lambda i: -samples[i].n_rows)  # stable
    for i in order[:1]:
        if samples[i].n_rows > max_tokens:
            raise DataError(
                f"The sample of row {samples[i].row} needs {samples[i].n_rows} tokens: a micro-batch has {max_tokens}."
            )
    fitted = _best_fit(samples, order, max_tokens, max_sequences)
    level = _deal_out(samples, order, len(fitted), max_sequences)
    longest = max((sum(samples[i].n_rows for i in chosen) for chosen in level), default=0)
    return [_micro_batch(samples, chosen) for chosen in (level if level and longest <= max_tokens else fitted)]


def efficiency(micro_batches: Sequence[MicroBatch]) -> float:
    """Rows of all micro-batches, as a share of as many of the longest one, 0 to 1."""
    longest = max((batch.n_tokens for batch in micro_batches), default=0)
    return sum(batch.n_tokens for batch in micro_batches) / max(1, len(micro_batches) * longest)


def _best_fit(samples: Sequence[Sample], order: Sequence[int], max_tokens: int, max_sequences: int) -> list[list[int]]:
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free rows, bin), ascending; full bins are gone
    for i in order:
        n_rows = samples[i].n_rows
        place = bisect.bisect_left(free, (n_rows, 0))
        if place < len(free):
            n_free, chosen = free.pop(place)
            bins[chosen].append(i)
        else:
            n_free, chosen = max_tokens, len(bins)
            bins.append([i])
        if n_free > n_rows and len(bins[chosen]) < max_sequences:
            bisect.insort(free, (n_free - n_rows, chosen))
    return bins


def _deal_out(samples: Sequence[Sample], order: Sequence[int], n_bins: int, max_sequences: int) -> list[list[int]]:
    """Return no bins where the samples are too many for them."""
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    loads = [(0, b) for b in range(n_bins)]  # a heap
    for i in order:
        if not loads:
            return []
        load, chosen = heapq.heappop(loads)
        bins[chosen].append(i)
        if len(bins[chosen]) < max_sequences:
            heapq.heappush(loads, (load + samples[i].n_rows, chosen))
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
