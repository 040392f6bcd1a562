"""Question/answer records and the CSV files that hold them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.data.conversation import Conversation
from ggtune.data.readers.csv_table import CsvReader
from ggtune.data.readers.reader import Findings, ReadOptions
from ggtune.data.shapes import Columns
from ggtune.errors import DataError
from ggtune.files import replace_text


@dataclass(frozen=True)
class Record:
    """One question and its answer. ``row`` counts as a spreadsheet does: the header is row 1."""

    question: str
    answer: str
    system: str | None
    row: int


@dataclass(frozen=True)
class Table:
    """The usable rows of a file, and what was left out."""

    records: tuple[Record, ...]
    empty_rows: tuple[int, ...]  # rows with an empty question or answer
    unused_columns: tuple[str, ...]


def read_csv(
    path: str | Path,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    skip_bad: bool = False,
    encoding: str = "",
) -> Table:
    """Read a CSV or TSV file with a header; columns are found by name, case-insensitively.

    Cells are text as they stand ("NA" and "None" are answers) without surrounding white space. A ``system`` column
    gives each row its own system text, a ``context`` or ``input`` beside the question is part of it. Blank rows are
    ignored; rows with an empty question or answer are listed. Raises :class:`DataError` naming file and row for
    anything that can't be used.
    """
    findings = Findings()
    options = ReadOptions(columns=Columns(question_column, answer_column), skip_bad=skip_bad, encoding=encoding)
    records: list[Record] = []
    for item in CsvReader().read(Path(path), options, findings):
        if not isinstance(item, Conversation) or len(item.turns) - (item.system is not None) != 2:
            raise DataError(f"{path}: row {item.row} is no question with its answer.")
        question, answer = item.turns[-2:]
        records.append(Record(question.text, answer.text, item.system, item.row))
    findings.check(Path(path), options)
    if not records:
        raise DataError(f"{path}: no usable row: {_nothing(findings)}.")
    return Table(tuple(records), tuple(findings.empty), tuple(findings.unused))


def _nothing(findings: Findings) -> str:
    n_empty = len(findings.empty)
    return f"question or answer is empty in all {n_empty}" if n_empty else "there is only a header"


def write_csv(path: str | Path, records: Sequence[Record]) -> None:
    """Write records as ``question,answer``, with a ``system`` column where one has a system text.

    Raises :class:`ggtune.files.WriteError`.
    """
    import pandas as pd

    columns = {"question": [r.question for r in records], "answer": [r.answer for r in records]}
    if any(record.system for record in records):
        columns["system"] = [record.system or "" for record in records]
    replace_text(Path(path), pd.DataFrame(columns).to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\n"))
