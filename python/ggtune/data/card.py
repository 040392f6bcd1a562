"""What is known of a data set once it is samples: lengths, what counts in the loss, doubts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggtune.data.dataset import Dataset
from ggtune.data.doubts import KINDS, Doubt, Doubts
from ggtune.data.split import IndexArray

_BARS = 10
_BAR_WIDTH = 40
_CONTEXTS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)
_SHOWN = 5  # rows of each kind of doubt
_GOOD_COVER = 0.99  # of the samples fit into the suggested context
_LOW_SHARE = 0.05
_MOST_REASONS = 20  # of rows that were skipped, in a file


@dataclass(frozen=True)
class DataCard:
    """``lengths``: tokens of each sample before any was cut; ``learned``: those with a weight, of what is kept."""

    data: Dataset
    lengths: NDArray[np.int64]
    learned: int
    n_tokens: int
    doubts: Doubts  # of the rows
    leaks: tuple[Doubt, ...]  # of held-out samples
    apart: Dataset | None = None  # of a file that is held out

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
            data.report.doubts,
            (*_leaks(data, held_out), *_shared(data, apart)),
            apart,
        )

    @property
    def n_doubts(self) -> int:
        """Doubts about rows, and leaks, also of a file that is held out."""
        apart = len(self.apart.report.doubts) if self.apart is not None else 0
        return len(self.doubts) + len(self.leaks) + apart

    @property
    def n_skipped(self) -> int:
        """Rows that were left out, also of a file that is held out."""
        reports = [data.report for data in (self.data, self.apart) if data is not None]
        return sum(len(rows) for r in reports for rows in (r.bad_rows, r.empty_rows, r.skipped_rows))

    @property
    def suggested_context(self) -> int:
        """The smallest usual context that 99 of 100 samples fit into."""
        longest = int(np.quantile(self.lengths - 1, _GOOD_COVER, method="higher"))
        return next((context for context in _CONTEXTS if context >= longest), longest)

    @property
    def learned_share(self) -> float:
        """Share of the tokens that have a weight in the loss."""
        return self.learned / max(1, self.n_tokens)

    def to_dict(self, context: int, n_held_out: int) -> dict[str, Any]:
        """Plain values for a JSON file; ``context`` is the longest sample in tokens that the run takes."""
        reports = [data.report for data in (self.data, self.apart) if data is not None]
        bad = [f"{report.named(row)}: {reason}" for report in reports for row, reason in report.bad_rows]
        counts, edges = self._bins()
        return {
            "format": 1,
            "lines": self.data.report.lines(with_doubts=False),
            "data": [str(report.path) for report in reports],
            "rows": self.data.report.n_read,
            "samples": len(self.data.samples) + (len(self.apart.samples) if self.apart is not None else 0),
            "held_out": n_held_out,
            "tokens": self.n_tokens,
            "learned": self.learned,
            "learned_share": self.learned_share,
            "lengths": {
                "least": int(self.lengths.min()),
                "most": int(self.lengths.max()),
                "mean": float(self.lengths.mean()),
                "median": float(np.median(self.lengths)),
                "edges": edges.tolist(),
                "counts": counts.tolist(),
            },
            "context": context,
            "fit_share": float(np.mean(self.lengths - 1 <= context)),
            "suggested_context": self.suggested_context,
            "template": self.data.report.title or self.data.report.template,
            "system": self.data.report.system,
            "system_differs": self.data.report.system_differs,
            "skipped": {
                "question or answer empty": sum(len(report.empty_rows) for report in reports),
                "can't be used": sum(len(report.bad_rows) for report in reports),
                "too long for the context": sum(len(report.skipped_rows) for report in reports),
                **{f"left out by --drop, {kind}": len(rows) for kind, rows in self.data.report.dropped.items()},
            },
            "skipped_rows": bad[:_MOST_REASONS],
            "cut": sum(len(report.cut_rows) for report in reports),
            "doubts": dict((self.data.report.doubts.counts + Counter(d.kind for d in self.leaks)).most_common()),
        }

    def _bins(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Count the samples by their length: the counts, and the edges between them."""
        low, high = int(self.lengths.min()), int(self.lengths.max()) + 1
        counts, edges = np.histogram(self.lengths, bins=np.linspace(low, high, min(_BARS, high - low) + 1))
        return counts.astype(np.int64), edges

    def lines(self, context: int, *, every_row: bool = False) -> list[str]:
        """Say it for printing."""
        report = self.data.report
        share = self.learned_share
        lines = report.lines(with_doubts=False)
        lines += [f"skipped, {report.where(row)}: {reason}" for row, reason in report.bad_rows]
        if self.apart is not None:
            other = self.apart.report
            lines += [f"held out: {line}" for line in other.lines()]
            lines += [f"held out: skipped, {other.named(row)}: {reason}" for row, reason in other.bad_rows]
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
        counts, edges = self._bins()
        yield "Lengths in tokens:"
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = "#" * int(np.ceil(_BAR_WIDTH * count / max(1, counts.max())))
            yield f"{int(np.ceil(low)):>7} to {int(np.ceil(high)) - 1:>6} {count:>7} {bar}"

    def _doubtful(self, every_row: bool) -> Iterator[str]:
        counts = self.data.report.doubts.counts + Counter(doubt.kind for doubt in self.leaks)
        if not counts:
            yield "No doubts."
            return
        shown: dict[str, list[str]] = {kind: [] for kind in counts}
        for doubt in chain(self.doubts, self.leaks):
            if every_row or len(shown[doubt.kind]) < _SHOWN:
                where = doubt.where or self.data.report.where(doubt.row)
                shown[doubt.kind].append(where + (f": {doubt.text}" if doubt.text else ""))
        yield ""
        yield "Doubts:"
        for kind, n in counts.most_common():
            yield f"  {kind}: {n} ({KINDS[kind]})"
            yield from (f"    {line}" for line in shown[kind])
            if n > len(shown[kind]):
                yield f"    ... and {n - len(shown[kind])} more (--all shows them)"


def _shared(data: Dataset, apart: Dataset | None) -> list[Doubt]:
    """Samples of a held-out file whose question is trained on."""
    if apart is None:
        return []
    row_of = dict(zip(data.groups.tolist(), data.samples.rows.tolist(), strict=True))
    held_out = zip(apart.groups.tolist(), apart.samples.rows.tolist(), strict=True)
    return [
        Doubt("leak", row, f"of {data.report.named(row_of[group])}", apart.report.named(row))
        for group, row in held_out
        if group in row_of
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
        Doubt("leak", row, f"of {data.report.row(of)}")
        for row, of in zip(rows[leaking].tolist(), rows[trained].tolist(), strict=True)
    ]
