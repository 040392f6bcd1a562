"""Files of multiple-choice questions: JSON, JSON lines, tables."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.data.readers.decoding import encoding_of, open_text
from ggtune.errors import DataError
from ggtune.evaluate.choice.formats import FORMATS, ChoiceFormat, ChoiceQuestion

_SHOWN = 10
_MMLU_COLUMNS = ("question", "A", "B", "C", "D", "answer")  # of the tables of Hendrycks et al., which have no header


@dataclass(frozen=True)
class ChoiceFile:
    """The questions of a file."""

    path: Path
    format: ChoiceFormat
    questions: tuple[ChoiceQuestion, ...]


def read_choices(path: Path, format_name: str = "") -> ChoiceFile:
    """Read a file whose columns tell which data set its rows are like, unless ``format_name`` does.

    Raises :class:`DataError` for a file of another kind, and with all rows that are no question.
    """
    rows = [(number, row) for number, row in _rows(path) if any(value not in (None, "") for value in row.values())]
    if not rows:
        raise DataError(f"{path}: holds no question.")
    form = _format_of(path, set(rows[0][1]), format_name)
    questions, bad = [], []
    for number, row in rows:
        try:
            questions.append(form.question(row, number))
        except ValueError as error:
            bad.append(f"row {number} {error}")
    if bad:
        more = f"\n  ... and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        count = "1 row is" if len(bad) == 1 else f"{len(bad)} rows are"
        raise DataError(
            f"{path}: {count} no question in the form of {form.name}:\n  " + "\n  ".join(bad[:_SHOWN]) + more
        )
    return ChoiceFile(path, form, tuple(questions))


def _format_of(path: Path, names: set[str], format_name: str) -> ChoiceFormat:
    if format_name:
        if format_name not in FORMATS:
            raise DataError(f"There is no multiple-choice format {format_name!r}. Formats: {', '.join(FORMATS)}.")
        return FORMATS[format_name]
    found = next((form for form in FORMATS.values() if form.claims(names)), None)
    if found is None:
        known = "; ".join(
            f"{form.name} ({', '.join(column.replace('|', ' or ') for column in form.columns)})"
            for form in FORMATS.values()
        )
        raise DataError(
            f"{path}: these are no multiple-choice questions in a known form: the columns are "
            f"{', '.join(sorted(map(str, names)))}. Known are {known}."
        )
    return found


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        encoding = encoding_of(path, [], "")
        with open_text(path, encoding) as file:
            text = file.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text file") from error
    if text.lstrip("\ufeff \t\r\n").startswith(("{", "[")):
        yield from _objects(path, text)
    else:
        yield from _table(path, text)


def _objects(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = text.lstrip("\ufeff")
    try:
        whole = json.loads(text)
        listed: Sequence[Any] = whole if isinstance(whole, list) else [whole]
        if isinstance(whole, dict) and isinstance(whole.get("rows"), list):  # as the hub's viewer gives them
            listed = [entry.get("row", entry) if isinstance(entry, dict) else entry for entry in whole["rows"]]
        numbered = list(enumerate(listed, start=1))
    except (ValueError, RecursionError):
        numbered = []
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}: line {number} is no JSON: {error}") from error
    for number, value in numbered:
        if not isinstance(value, dict):
            raise DataError(f"{path}: row {number} is {type(value).__name__}, not an object with names and values.")
        yield number, value


def _table(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = text.lstrip("\ufeff")
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max((",", "\t", ";"), key=first.count)
    csv.field_size_limit(1 << 24)
    try:
        lines = list(csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}: is no table: {error}") from error
    if not lines:
        return
    header = [name.strip() for name in lines[0]]
    if len(header) == len(_MMLU_COLUMNS) and header[-1] in ("A", "B", "C", "D") and "question" not in header:
        lines, header = [[], *lines], list(_MMLU_COLUMNS)
    for number, cells in enumerate(lines[1:], start=1 if not lines[0] else 2):
        if any(cell.strip() for cell in cells):
            if len(cells) > len(header):
                raise DataError(f"{path}: row {number} has {len(cells)} cells, the header has {len(header)}.")
            yield number, dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=True))
