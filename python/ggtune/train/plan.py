"""Which samples every step computes. All of it follows from the samples, the settings and the seed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ggtune.config import CEILING_EPOCHS, CEILING_LEAST_STEPS
from ggtune.data.packing import MAX_SEQUENCES, MicroBatch, PackedSamples, efficiency, pack, pack_lengths
from ggtune.data.samples import Sample
from ggtune.data.split import IndexArray, epoch_order
from ggtune.data.store import lengths_of, n_targets_of
from ggtune.errors import GgtuneError

_TRIED_STEPS = 1000  # whose graphs are looked at where samples of one length alone go into one

Shape = tuple[int, int, int]  # tokens, targets, sequences


@dataclass(frozen=True)
class Packing:
    """How well the samples of the first epoch fill the micro-batches."""

    micro_batches_per_step: float
    efficiency: float  # how equally long the micro-batches of a step are, mean over the steps


class Plan:
    """The micro-batches of each step, and those of the held-out samples.

    ``batch`` samples make an optimizer step; the last step of an epoch takes what is left. ``max_tokens`` bounds a
    micro-batch. Raises :class:`GgtuneError` where a sample is longer than that.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        *,
        batch: int,
        max_tokens: int,
        seed: int,
        epochs: float | None,
        max_steps: int,
        graphs: Callable[[list[int]], list[list[int]]] | None = None,
    ) -> None:
        """``epochs`` None: a run until its ``stop_loss``, whose ``total_steps`` are a ceiling.

        ``graphs`` shares the samples of a micro-batch out, by their numbers of rows, where it takes more than one graph
        (``Trainer.graphs``).
        """
        self._n_rows = lengths_of(samples) - 1
        longest = int(max(self._n_rows.max(initial=0), (lengths_of(held_out) - 1).max(initial=0)))
        if longest > max_tokens:
            raise GgtuneError(
                f"the longest sample needs {longest} tokens: give at least that many by --micro-batch-tokens, "
                "or cut the samples by a smaller --ctx"
            )
        self._samples = samples
        self._batch = batch
        self._seed = seed
        self.max_tokens = max_tokens
        self.steps_per_epoch = math.ceil(len(samples) / batch)
        limits = [max_steps] if max_steps else []
        if epochs is None:
            limits.append(max(CEILING_EPOCHS * self.steps_per_epoch, CEILING_LEAST_STEPS))
        elif epochs > 0:
            limits.append(max(1, round(epochs * self.steps_per_epoch)))
        self.total_steps: int | None = min(limits, default=None)
        self.known_steps = None if epochs is None else self.total_steps  # those that will be taken, but for stop_loss
        self._order: tuple[int, IndexArray] | None = None
        bound = self._bound(longest)
        self.held_out = PackedSamples(held_out, max(bound[0], longest))
        self.largest = bound if graphs is None else self._largest_graph(graphs, longest, bound)

    def micro_batches(self, epoch: int, cursor: int) -> list[MicroBatch]:
        """Return the micro-batches of step ``cursor`` (from 0) of ``epoch`` (from 0)."""
        return pack([self._samples[int(i)] for i in self._chosen(epoch, cursor)], self.max_tokens)

    def packing(self) -> Packing:
        """Pack the first epoch to see."""
        n_micro_batches, efficiencies = 0, 0.0
        for cursor in range(self.steps_per_epoch):
            n_rows = self._n_rows[self._chosen(0, cursor)].tolist()
            packed = pack_lengths(n_rows, self.max_tokens)
            n_micro_batches += len(packed)
            efficiencies += efficiency([sum(n_rows[i] for i in chosen) for chosen in packed])
        return Packing(n_micro_batches / self.steps_per_epoch, efficiencies / self.steps_per_epoch)

    def _chosen(self, epoch: int, cursor: int) -> IndexArray:
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, epoch_order(len(self._samples), self._seed, epoch))
        return self._order[1][cursor * self._batch : (cursor + 1) * self._batch]

    def _largest_graph(self, graphs: Callable[[list[int]], list[list[int]]], longest: int, bound: Shape) -> Shape:
        """Return the shape of the largest graph of the first steps, the rows counted with which samples are filled up.

        No bound, but ``bound`` is of a micro-batch in one graph, which takes several times as much as any that comes.
        """
        targets = n_targets_of(self._samples)
        largest = longest, min(longest, bound[1]), 1
        n_steps = min(_TRIED_STEPS, self.total_steps or _TRIED_STEPS)
        for step in range(n_steps):
            chosen = self._chosen(*divmod(step, self.steps_per_epoch))
            n_rows = self._n_rows[chosen].tolist()
            for packed in pack_lengths(n_rows, self.max_tokens):
                for graph in graphs([n_rows[i] for i in packed]):
                    samples = [packed[i] for i in graph]
                    n_tokens = len(samples) * max(n_rows[i] for i in samples)
                    n_targets = int(targets[chosen[samples]].sum())
                    largest = max(largest, (n_tokens, n_targets, len(samples)))
        return largest

    def _bound(self, longest: int) -> Shape:
        """Bounds of (tokens, targets, sequences) of any step's micro-batches."""
        n_most = min(self._batch, len(self._samples))
        rows, targets = (
            int(np.sort(numbers)[-n_most:].sum()) for numbers in (self._n_rows, n_targets_of(self._samples))
        )
        n_tokens = max(longest, min(self.max_tokens, rows))
        return n_tokens, min(n_tokens, targets), min(n_most, MAX_SEQUENCES)
