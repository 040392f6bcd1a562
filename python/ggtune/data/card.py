"""What is known of a data set once it is samples: lengths, what counts in the loss, doubts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggtune.data.dataset import Dataset
from ggtune.data.doubts import KINDS, Doubt
from ggtune.data.split import IndexArray

_BARS = 10
_BAR_WIDTH = 40
_CONTEXTS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
_SHOWN = 5  # rows of each kind of doubt
_GOOD_COVER = 0.99  # of the samples fit into the suggested context
_LOW_SHARE = 0.05


@dataclass(frozen=True)
class DataCard:
    """``lengths``: tokens of each sample before any was cut; ``learned``: those with a weight, of what is kept."""

    data: Dataset
    lengths: NDArray[np.int64]
    learned: int
    n_tokens: int
    doubts: tuple[Doubt, ...]

    @classmethod
    def of(cls, data: Dataset, held_out: IndexArray | Sequence[int] = (), apart: Dataset | None = None) -> DataCard:
        """Look at a data set; ``held_out`` are the samples that are not trained on, ``apart`` those of another file."""
        kept = data.samples.lengths
        lengths = np.concatenate([kept, np.array(data.report.too_long_lengths, np.int64)])
        learned = int(data.samples.n_targets.sum(dtype=np.int64))
        return cls(
            data,
            lengths,
            learned,
            int(kept.sum()),
            (*data.report.doubts, *_leaks(data, held_out), *_shared(data, apart)),
        )

    @property
    def suggested_context(self) -> int:
        """The smallest usual context that 99 of 100 samples fit into."""
        longest = int(np.quantile(self.lengths - 1, _GOOD_COVER, method="higher"))
        return next((context for context in _CONTEXTS if context >= longest), longest)

    def lines(self, context: int, *, every_row: bool = False) -> list[str]:
        """Say it for printing."""
        report, unit = self.data.report, self.data.report.unit
        share = self.learned / max(1, self.n_tokens)
        lines = report.lines(with_doubts=False)
        lines += [f"skipped, {unit} {row}: {reason}" for row, reason in report.bad_rows]
        lines += ["", *self._histogram(), ""]
        lines.append(
            f"Tokens: {self.n_tokens:,} in {len(self.data.samples):,} samples; {self.learned:,} of them are learned "
            f"({100 * share:.0f} %)"
        )
        if share < _LOW_SHARE:
            lines.append("That is little: are the prompts that long, or is it the wrong column that is learned?")
        fit = float(np.mean(self.lengths - 1 <= context))
        lines.append(
            f"Context: {100 * fit:.1f} % of the samples fit into --ctx {context}; "
            f"suggested: --ctx {self.suggested_context}"
        )
        return [*lines, *self._doubtful(every_row)]

    def _histogram(self) -> Iterator[str]:
        low, high = int(self.lengths.min()), int(self.lengths.max()) + 1
        counts, edges = np.histogram(self.lengths, bins=np.linspace(low, high, min(_BARS, high - low) + 1))
        yield "Lengths in tokens:"
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = "#" * int(np.ceil(_BAR_WIDTH * count / max(1, counts.max())))
            yield f"{int(np.ceil(low)):>7} to {int(np.ceil(high)) - 1:>6} {count:>7} {bar}"

    def _doubtful(self, every_row: bool) -> Iterator[str]:
        by_kind: dict[str, list[Doubt]] = {}
        for doubt in self.doubts:
            by_kind.setdefault(doubt.kind, []).append(doubt)
        if not by_kind:
            yield "No doubts."
            return
        yield ""
        yield "Doubts:"
        unit = self.data.report.unit
        for kind, found in sorted(by_kind.items(), key=lambda pair: -len(pair[1])):
            yield f"  {kind}: {len(found)} ({KINDS[kind]})"
            for doubt in found if every_row else found[:_SHOWN]:
                yield f"    {unit} {doubt.row}" + (f": {doubt.text}" if doubt.text else "")
            if not every_row and len(found) > _SHOWN:
                yield f"    ... and {len(found) - _SHOWN} more (--all shows them)"


def _shared(data: Dataset, apart: Dataset | None) -> list[Doubt]:
    """Samples of a held-out file whose question is trained on."""
    if apart is None:
        return []
    row_of = dict(zip(data.groups.tolist(), data.samples.rows.tolist(), strict=True))
    held_out = zip(apart.groups.tolist(), apart.samples.rows.tolist(), strict=True)
    return [
        Doubt("leak", row, f"of {row_of[group]} (in the held-out file)") for group, row in held_out if group in row_of
    ]


def _leaks(data: Dataset, held_out: IndexArray | Sequence[int]) -> list[Doubt]:
    """Held-out samples whose question is trained on."""
    if not len(held_out):
        return []
    apart = np.zeros(len(data.samples), np.bool_)
    apart[held_out] = True
    leaking = np.flatnonzero(apart)
    leaking = leaking[np.isin(data.groups[leaking], data.groups[~apart])]
    if not len(leaking):
        return []
    like = np.flatnonzero(~apart & np.isin(data.groups, data.groups[leaking]))
    groups, first = np.unique(data.groups[like], return_index=True)
    trained = like[first[np.searchsorted(groups, data.groups[leaking])]]
    rows = data.samples.rows
    return [
        Doubt("leak", row, f"of {of}") for row, of in zip(rows[leaking].tolist(), rows[trained].tolist(), strict=True)
    ]
