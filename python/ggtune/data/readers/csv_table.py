"""Tables of separated values with a header: CSV, TSV, what spreadsheets export."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.csv_lines import RowLines, open_quote
from ggtune.data.readers.decoding import encoding_of, head_of, not_whole, open_text
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of
from ggtune.data.shapes import ANSWER_KEYS, CHAT_KEYS, CONTEXT_KEYS, QUESTION_KEYS, SYSTEM_KEYS, TEXT_KEYS
from ggtune.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?\n?', re.IGNORECASE)  # Excel's
_LARGEST_CELL = 1 << 24  # characters, four bytes each in csv: as many are read for a quote that is never closed
_KNOWN = {*QUESTION_KEYS, *ANSWER_KEYS, *CONTEXT_KEYS, *SYSTEM_KEYS, *CHAT_KEYS, *TEXT_KEYS}


class CsvReader:
    """A header, then a row for each exchange; cells with separators, quotes or line breaks in double quotes."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By a header that names a question and an answer."""
        return options.sample_start is None and has_header(head)

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the rows, numbered as in a spreadsheet, where the header is row 1. Raises :class:`DataError`."""
        encoding = encoding_of(path, findings.notes, options.encoding)
        head = head_of(path, encoding)
        if "\0" in head:
            line = head[: head.index("\0")].count("\n") + 1
            raise DataError(f"{path}: line {line} holds a zero byte: this is not a text file.")
        if not head.strip():
            raise DataError(f"{path}: the file is empty.")
        yield from items_of(_rows(path, encoding, head, findings), path, options, findings)


def has_header(text: str) -> bool:
    """Whether the first line names a question and an answer column."""
    return _names_both(_split_header(text)[1])


def _names_both(cells: list[str]) -> bool:
    names = {name.strip().lower() for name in cells}
    return bool(names & set(QUESTION_KEYS)) and bool(names & set(ANSWER_KEYS))


def _split_header(text: str) -> tuple[str, list[str]]:
    """Find the delimiter that splits the first line into most columns, and those columns."""
    if separator := _SEPARATOR_LINE.match(text):
        return separator[1], _cells(text[separator.end() :], separator[1])
    splits = [(delimiter, _cells(text, delimiter)) for delimiter in _DELIMITERS]
    return max(splits, key=lambda split: len(split[1]))


def _cells(text: str, delimiter: str) -> list[str]:
    line = next((line for line in re.split(r"[\r\n]", text) if line.strip(f"{delimiter} \t")), "")
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
        lines = RowLines(file, 0)
        if _SEPARATOR_LINE.match(head):
            file.readline()
            lines = RowLines(file, 1)
        # strict: a quote inside a quoted cell would else be dropped without a word
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        number, header_seen, broken = 0, False, 0
        while True:
            number += 1
            lines.begin_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise not_whole(path, error) from error
            except csv.Error as error:
                header_seen = True
                several = len(lines.row) > 1
                opened = lines.first + open_quote(lines.row, delimiter)
                findings.add_bad(number, _csv_fault(error, opened, lines.last))
                if several:  # an unclosed quote has swallowed rows: they are read again
                    broken = opened
                    lines.back_to(opened + 1)
                continue
            values = [cell.strip().replace("\r\n", "\n").replace("\r", "\n") for cell in cells]
            if not any(values):
                continue
            if not header_seen:
                header_seen = True
                continue
            if broken:
                if fault := _stray(values, header, lines.row, broken):
                    findings.add_bad(number, fault)
                    continue
                broken = 0
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
            if _is_header(values, names, path, number):
                findings.notes.append(f"row {number} is the header once more (files put together?): left out")
                continue
            values += [""] * (len(header) - len(values))
            yield number, dict(zip(header, values, strict=False))


def _stray(values: list[str], header: list[str], lines: list[str], broken: int) -> str:
    """Say why a row behind an open quote may be the rest of its cell, "" for a whole row."""
    raw = "".join(lines)
    if len(values) == len(header) and (raw.count('"') == 0 or '""' in raw or not any('"' in v for v in values)):
        return ""
    return f"is no whole row, and stands behind the double quote of line {broken}: is it a part of that cell?"


def _is_header(values: list[str], names: list[str], path: Path, number: int) -> bool:
    """Whether a row is the header again. Raises :class:`DataError` for one with the columns in another order."""
    found = [value.lower() for value in values]
    if found == names:
        return True
    if found[0] in _KNOWN and _names_both(found) and all(name in _KNOWN or name in names for name in found):
        raise DataError(
            f"{path}: row {number} is another header ({', '.join(values)}): tables with different columns were put "
            "together. Make a file of each (--more-data reads several)."
        )
    return False


def _csv_fault(error: csv.Error, opened: int, last: int) -> str:
    """Say what is wrong; ``opened`` and ``last`` are the lines where the quoted cell opens and where it broke."""
    text = str(error)
    if "unexpected end of data" in text:
        return f"a double quote is never closed: it opens in line {opened}"
    if "expected after" in text:
        if opened == last:
            return "a double quote inside a quoted cell is not written twice"
        return (
            f"the double quote that opens in line {opened} is not closed there, and what follows up to line {last} "
            "can't be its cell: close it, or write quotes inside a cell twice"
        )
    if "field larger" in text:
        cell = f"a cell has more than {_LARGEST_CELL:,} characters"
        return f"{cell}: is the double quote that opens in line {opened} never closed?"
    return text
