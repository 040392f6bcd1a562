"""A data set as token samples, and the report of what was left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggtune.data.doubts import Doubts
from ggtune.data.store import SampleStore
from ggtune.data.templates import Template
from ggtune.errors import DataError

_SHOWN_ROWS = 10


@dataclass(frozen=True)
class FileRows:
    """A file of several: its rows are numbered on behind those of the files before it."""

    name: str
    unit: str  # what its numbers count
    before: int  # number of the last row of the files before


@dataclass
class LoadReport:
    """What became of the rows of the data. Numbers are rows of a table (the header is row 1) or lines of a text.

    Of several files the rows are numbered on; :meth:`where` says which file and row a number stands for.
    """

    path: str
    kind: str  # the reader's name, of the last file
    unit: str = "row"  # what numbers count
    files: Sequence[FileRows] = ()
    plain: bool = False  # texts without turns alone
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
    doubts: Doubts = field(default_factory=Doubts)
    dropped: Mapping[str, Sequence[int]] = field(default_factory=dict)  # rows left out by --drop, by kind of doubt

    def place(self, number: int) -> tuple[FileRows, int]:
        """Find the file and the row in it that a number stands for."""
        if not self.files:
            return FileRows(Path(self.path).name, self.unit, 0), number
        file = self.files[max(0, bisect_left(self.files, number, key=lambda file: file.before) - 1)]
        return file, number - file.before

    def row(self, number: int) -> str:
        """Name a row in a sentence about rows: of several files with its file."""
        return self.named(number) if len(self.files) > 1 else str(self.place(number)[1])

    def where(self, number: int) -> str:
        """Name a row: of several files with its file."""
        return self.named(number) if len(self.files) > 1 else f"{self.unit} {self.place(number)[1]}"

    def named(self, number: int) -> str:
        """Name a row with its file."""
        file, row = self.place(number)
        return f"{file.name} {file.unit} {row}"

    def row_list(self, numbers: Sequence[int]) -> str:
        """Name rows, the first ten of many, file by file."""
        shown = [self.place(number) for number in numbers[:_SHOWN_ROWS]]
        texts = []
        for file, group in groupby(shown, key=lambda place: place[0]):
            name = f"{file.name} " if len(self.files) > 1 else ""
            texts.append(f"{name}{file.unit}s {', '.join(str(row) for _, row in group)}")
        return "; ".join(texts) + (f", ... ({len(numbers)} in all)" if len(numbers) > _SHOWN_ROWS else "")

    def numbers_of(self, row: int, name: str = "") -> list[int]:
        """Give the numbers of a row: in the files of this name, or in all. Raises :class:`DataError`."""
        if name and not self.files and name not in (self.path, Path(self.path).name):
            raise DataError(f"{self.path}: is the only data file, not {name}.")
        files = self.files or [FileRows("", self.unit, 0)]
        wanted = [file for file in files if not name or not self.files or name in (file.name, Path(file.name).name)]
        if not wanted:
            raise DataError(f"There is no data file {name!r}; there are {', '.join(file.name for file in files)}.")
        ends = [*(file.before for file in files[1:]), None]
        return [
            file.before + row
            for file, end in zip(files, ends, strict=True)
            if file in wanted and (end is None or file.before + row <= end)
        ]

    def lines(self, *, with_doubts: bool = True) -> list[str]:
        """Say the report in sentences, for printing."""
        units = {file.unit for file in self.files} or {self.unit}
        unit = f"{units.pop()}s" if len(units) == 1 else "rows"
        what = "windows" if self.plain else "samples" if self.kind == "sft" and len(self.files) < 2 else unit
        form = f", template '{self.title}'" if self.title else ""
        lines = [f"{self.path}: {self.n_read} {what}{form}"]
        if self.empty_rows:
            lines.append(f"skipped, question or answer empty: {self.row_list(self.empty_rows)}")
        if self.bad_rows:
            lines.append(f"skipped, can't be used: {self.row_list([number for number, _ in self.bad_rows])}")
        lines += [f"left out by --drop, {kind}: {self.row_list(rows)}" for kind, rows in self.dropped.items()]
        if self.end_appended:
            lines.append(f"end token missing and appended: {self.end_appended} samples")
        if self.cut_rows:
            lines.append(f"cut to the context: {self.row_list(self.cut_rows)}")
        if self.skipped_rows:
            lines.append(f"skipped, too long for the context: {self.row_list(self.skipped_rows)}")
        if self.system_differs:
            lines.append("the samples have different system texts: the adapter names none to ask the model with")
        if self.doubts and with_doubts:
            found = ", ".join(f"{kind} {n}" for kind, n in self.doubts.counts.most_common())
            lines.append(f"doubtful {unit}: {found} (ggtune check-data names them)")
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
