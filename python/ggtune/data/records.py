"""Question/answer records and the CSV files that hold them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ggtune.errors import DataError
from ggtune.files import replace_text

if TYPE_CHECKING:
    import pandas as pd

QUESTION_COLUMNS = ("question", "prompt", "instruction", "input", "query", "user")
ANSWER_COLUMNS = ("answer", "response", "output", "completion", "reply", "assistant")
SYSTEM_COLUMNS = ("system",)
_DELIMITERS = (",", ";", "\t", "|")


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


def read_text(path: str | Path) -> str:
    """Read a UTF-8 file, a byte order mark dropped, line ends as line feeds. Raises :class:`DataError`."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}.") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16 text. Save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the offset is one into the file: utf-8-sig counts from behind the mark
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, offset) + 1
        raise DataError(
            f"{path}: line {line} is not UTF-8 (byte 0x{data[offset]:02x} at offset {offset}). Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} holds a zero byte: this is not a text file.")
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_csv(
    path: str | Path,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
) -> Table:
    """Read a CSV or TSV file with a header; columns are found by name, case-insensitively.

    Cells are text as they stand ("NA" and "None" are answers) without surrounding white space. A ``system`` column
    gives each row its own system text. Blank rows are ignored; rows with an empty question or answer are listed.
    Raises :class:`DataError` naming file and row for anything that can't be used.
    """
    frame = _read_frame(path, read_text(path))
    header = [str(name).strip() for name in frame.iloc[0]]
    if len(header) < 2:
        raise DataError(
            f"{path}: has only one column ({header[0]!r}). A question and an answer column are needed, "
            "separated by commas, semicolons or tabs."
        )
    question = _find_column(path, header, question_column, QUESTION_COLUMNS, "question")
    answer = _find_column(path, header, answer_column, ANSWER_COLUMNS, "answer")
    if question == answer:
        raise DataError(f"{path}: the column {header[question]!r} can't be both question and answer.")
    system = next((i for i, name in enumerate(header) if name.lower() in SYSTEM_COLUMNS), None)

    records: list[Record] = []
    empty_rows: list[int] = []
    for row, cells in enumerate(frame.iloc[1:].itertuples(index=False, name=None), start=2):
        values = [str(cell).strip() for cell in cells]
        if values[question] and values[answer]:
            system_text = (values[system] or None) if system is not None else None
            records.append(Record(values[question], values[answer], system_text, row))
        elif any(values):
            empty_rows.append(row)
    if not records:
        raise DataError(
            f"{path}: no usable row: "
            + (f"question or answer is empty in all {len(empty_rows)}." if empty_rows else "there is only a header.")
        )
    unused = tuple(name for i, name in enumerate(header) if i not in (question, answer, system))
    return Table(tuple(records), tuple(empty_rows), unused)


def write_csv(path: str | Path, records: Sequence[Record]) -> None:
    """Write records as ``question,answer``, with a ``system`` column where one has a system text.

    Raises :class:`ggtune.files.WriteError`.
    """
    import pandas as pd

    columns = {"question": [r.question for r in records], "answer": [r.answer for r in records]}
    if any(record.system for record in records):
        columns["system"] = [record.system or "" for record in records]
    replace_text(Path(path), pd.DataFrame(columns).to_csv(index=False, quoting=csv.QUOTE_ALL, lineterminator="\n"))


def has_csv_header(text: str) -> bool:
    """Whether the first line names a question and an answer column."""
    names = {name.strip().lower() for name in _split_header(text)[1]}
    return bool(names & set(QUESTION_COLUMNS)) and bool(names & set(ANSWER_COLUMNS))


def _split_header(text: str) -> tuple[str, list[str]]:
    """Find the delimiter that splits the first line into most columns, and those columns."""
    first_line = text.partition("\n")[0]
    splits = [(delimiter, next(csv.reader([first_line], delimiter=delimiter), [""])) for delimiter in _DELIMITERS]
    return max(splits, key=lambda split: len(split[1]))


def _read_frame(path: str | Path, text: str) -> pd.DataFrame:
    """All rows, the header included, as text cells."""
    import pandas as pd

    text = text.lstrip("\n")
    try:
        # header=None: with a header pandas would take a surplus first column for an index
        return pd.read_csv(
            io.StringIO(text),
            sep=_split_header(text)[0],
            header=None,
            dtype=str,
            na_filter=False,
            skip_blank_lines=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        reason = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        if unclosed := re.search(r"EOF inside string starting at row (\d+)", reason):
            reason = f"a double quote in row {int(unclosed[1]) + 1} is never closed"
        raise DataError(
            f"{path}: is not a regular CSV file: {reason}. "
            "Put cells with commas, quotes or line breaks in double quotes, and write a quote in them twice."
        ) from error


def _find_column(path: str | Path, header: list[str], wanted: str | None, known: Sequence[str], role: str) -> int:
    names = [name.lower() for name in header]
    for candidate in [wanted.strip().lower()] if wanted is not None else known:
        if names.count(candidate) > 1:
            raise DataError(f"{path}: two columns are called {candidate!r}. Rename one.")
        if candidate in names:
            return names.index(candidate)
    columns = ", ".join(map(repr, header))
    if wanted is not None:
        raise DataError(f"{path}: there is no column {wanted!r} for the {role}. The columns are {columns}.")
    raise DataError(
        f"{path}: no {role} column found: the header (row 1) names {columns}. "
        f"Name it with --{role}-column, or call it one of {', '.join(known)}."
    )
