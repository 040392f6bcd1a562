"""Tables of separated values with a header: CSV, TSV, what spreadsheets export."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.decoding import encoding_of, head_of, not_whole, open_text
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of
from ggtune.data.shapes import ANSWER_KEYS, CHAT_KEYS, CONTEXT_KEYS, QUESTION_KEYS, SYSTEM_KEYS, TEXT_KEYS
from ggtune.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)  # Excel's
_LARGEST_CELL = 1 << 26
_KNOWN = {*QUESTION_KEYS, *ANSWER_KEYS, *CONTEXT_KEYS, *SYSTEM_KEYS, *CHAT_KEYS, *TEXT_KEYS}


class CsvReader:
    """A header, then a row for each exchange; cells with separators, quotes or line breaks in double quotes."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By a header that names a question and an answer."""
        return options.sample_start is None and has_header(head)

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the rows; the header is row 1, as in a spreadsheet. Raises :class:`DataError`."""
        encoding = encoding_of(path, findings.notes)
        head = head_of(path, encoding)
        if "\0" in head:
            line = head[: head.index("\0")].count("\n") + 1
            raise DataError(f"{path}: line {line} holds a zero byte: this is not a text file.")
        if not head.strip():
            raise DataError(f"{path}: the file is empty.")
        yield from items_of(_rows(path, encoding, head, findings), path, options, findings)


def has_header(text: str) -> bool:
    """Whether the first line names a question and an answer column."""
    names = {name.strip().lower() for name in _split_header(text)[1]}
    return bool(names & set(QUESTION_KEYS)) and bool(names & set(ANSWER_KEYS))


def _split_header(text: str) -> tuple[str, list[str]]:
    """Find the delimiter that splits the first line into most columns, and those columns."""
    if separator := _SEPARATOR_LINE.match(text):
        return separator[1], _cells(text[separator.end() :], separator[1])
    splits = [(delimiter, _cells(text.lstrip("\r\n"), delimiter)) for delimiter in _DELIMITERS]
    return max(splits, key=lambda split: len(split[1]))


def _cells(text: str, delimiter: str) -> list[str]:
    line = text.replace("\r", "\n").partition("\n")[0]
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [""])


def _rows(path: Path, encoding: str, head: str, findings: Findings) -> Iterator[tuple[int, Mapping[str, Any]]]:
    delimiter, header = _split_header(head)
    header = [name.strip() for name in header]
    if len(header) < 2:
        raise DataError(
            f"{path}: has only one column ({header[0]!r}). A question and an answer column are needed, "
            "separated by commas, semicolons or tabs."
        )
    names = [name.lower() for name in header]
    if twice := next((name for name in names if name in _KNOWN and names.count(name) > 1), None):
        raise DataError(f"{path}: two columns are called {twice!r}. Rename one.")
    csv.field_size_limit(_LARGEST_CELL)
    with open_text(path, encoding) as file:
        if _SEPARATOR_LINE.match(head):
            file.readline()
        # strict: a quote inside a quoted cell would else be dropped without a word
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        number = 0
        header_seen = False
        while True:
            if header_seen or number:
                number += 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise not_whole(path, error) from error
            except csv.Error as error:
                number = max(number, 1)
                findings.add_bad(number, _csv_fault(error))
                header_seen = True
                continue
            if not header_seen:
                if any(cell.strip() for cell in cells):
                    header_seen, number = True, 1
                continue
            values = [cell.strip().replace("\r\n", "\n").replace("\r", "\n") for cell in cells]
            if len(values) > len(header) and any(values[len(header) :]):
                findings.add_bad(
                    number,
                    f"has {len(values)} cells, the header has {len(header)}: put cells with {delimiter!r} in them in "
                    "double quotes",
                )
                continue
            if any("\0" in value for value in values):
                findings.add_bad(number, "holds a zero byte")
                continue
            values += [""] * (len(header) - len(values))
            if any(values):
                yield number, dict(zip(header, values, strict=False))


def _csv_fault(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a double quote is never closed"
    if "expected after" in text:
        return "a double quote inside a quoted cell is not written twice"
    if "field larger" in text:
        return "a cell is larger than 64 MiB: is a double quote never closed?"
    return text
