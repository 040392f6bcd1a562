"""A data set as token samples, and the report of what was left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ggtune.data.doubts import Doubt
from ggtune.data.store import SampleStore
from ggtune.data.templates import Template

_SHOWN_ROWS = 10


@dataclass
class LoadReport:
    """What became of the rows of the data. Numbers are rows of a table (the header is row 1) or lines of a text."""

    path: str
    kind: str  # the reader's name
    unit: str = "row"  # what numbers count
    plain: bool = False  # texts without turns
    template: str | None = None  # its name; None for plain text
    title: str | None = None  # what a reader is shown of it
    system: str | None = None  # of every sample, "" for none; None where they differ or it can't be told
    system_differs: bool = False
    n_read: int = 0  # rows, samples or windows with a text
    empty_rows: Sequence[int] = ()
    bad_rows: Sequence[tuple[int, str]] = ()  # skipped, and why
    end_appended: int = 0  # samples whose text had no end token
    cut_rows: Sequence[int] = ()
    skipped_rows: Sequence[int] = ()
    too_long_lengths: Sequence[int] = ()  # tokens of the samples that were cut or skipped
    notes: list[str] = field(default_factory=list)
    doubts: Sequence[Doubt] = ()
    dropped: Mapping[str, Sequence[int]] = field(default_factory=dict)  # rows left out by --drop, by kind of doubt

    def lines(self, *, with_doubts: bool = True) -> list[str]:
        """Say the report in sentences, for printing."""
        what = "windows" if self.plain else "samples" if self.kind == "sft" else f"{self.unit}s"
        form = f", template '{self.title}'" if self.title else ""
        where = f"{self.unit}s"
        lines = [f"{self.path}: {self.n_read} {what}{form}"]
        if self.empty_rows:
            lines.append(f"skipped, question or answer empty: {row_list(where, self.empty_rows)}")
        if self.bad_rows:
            lines.append(f"skipped, can't be used: {row_list(where, [number for number, _ in self.bad_rows])}")
        lines += [f"left out by --drop, {kind}: {row_list(where, rows)}" for kind, rows in self.dropped.items()]
        if self.end_appended:
            lines.append(f"end token missing and appended: {self.end_appended} samples")
        if self.cut_rows:
            lines.append(f"cut to the context: {row_list(where, self.cut_rows)}")
        if self.skipped_rows:
            lines.append(f"skipped, too long for the context: {row_list(where, self.skipped_rows)}")
        if self.system_differs:
            lines.append("the samples have different system texts: the adapter names none to ask the model with")
        if self.doubts and with_doubts:
            counts = Counter(doubt.kind for doubt in self.doubts)
            found = ", ".join(f"{kind} {n}" for kind, n in counts.most_common())
            lines.append(f"doubtful {where}: {found} (ggtune check-data names them)")
        return lines + self.notes

    def asked_with(self) -> dict[str, str]:
        """Say how a model has to be asked after this training: the ``ggtune.*`` notes of an adapter file."""
        notes = {}
        if self.template:
            notes["template"] = self.template
        if self.system is not None or self.system_differs:
            # also where there is none: the base may have been trained with one
            notes["system"] = self.system or ""
            notes["system_differs"] = str(self.system_differs).lower()
        return notes


@dataclass(frozen=True)
class Dataset:
    """Token samples of the data in its order; ``template`` is None for plain text."""

    samples: SampleStore
    template: Template | None
    report: LoadReport
    groups: NDArray[np.int64]  # (n,): the same for samples that ask the same


def row_list(word: str, rows: Sequence[int]) -> str:
    """Name rows, the first ten of many."""
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    return f"{word} {shown}" + (f", ... ({len(rows)} in all)" if len(rows) > _SHOWN_ROWS else "")
