"""Objects of JSON files: one on each line, or values of any number of lines. Content decides, not the suffix."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.decoding import encoding_of, head_of, lines_of, pieces_of
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of
from ggtune.errors import DataError

_LIST_NAMES = ("data", "train", "rows", "examples", "instances", "conversations", "items")
_LOOKED_AT = 20  # lines behind a first one that is no JSON
_BETWEEN = re.compile(r"\s*,?\s*")  # values: lists that were cut apart leave commas


def read_json(path: Path, options: ReadOptions, findings: Findings, *, lines: bool) -> Iterator[Item]:
    """Give what the objects of a file become; ``lines``: its suffix says that each line holds one.

    Of lines the file may be larger than memory; other values are read at once. Raises :class:`DataError`.
    """
    encoding = encoding_of(path, findings.notes, options.encoding)
    if is_by_line(head_of(path, encoding), lines=lines):
        findings.unit = "line"
        yield from items_of(_objects_of_lines(path, encoding, findings), path, options, findings)
        return
    if lines:
        findings.notes.append("read as JSON values that take several lines or a list: rows count the objects")
    values = _rows_in(path, "".join(pieces_of(path, encoding)))
    yield from items_of(_numbered(values, findings), path, options, findings)


def is_by_line(head: str, *, lines: bool) -> bool:
    """Whether each line is an object of its own, by the first characters of a file."""
    text = head.lstrip("\ufeff \t\r\n")
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        return lines
    first = _parsed(found[0])
    if first is not None:
        return (lines if isinstance(first, dict) else False) or (len(found) > 1 and (lines or isinstance(first, dict)))
    if isinstance(first_value(text), (dict, list)):  # of several lines
        return False
    if any(line.startswith("{") and isinstance(_parsed(line), dict) for line in found[1 : _LOOKED_AT + 1]):
        return True
    return lines and not found[0].startswith("[") and found[0].strip() != "{"


def first_value(text: str) -> Any:
    """Give the JSON value that a text starts with, None where it starts with none."""
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _objects_of_lines(path: Path, encoding: str, findings: Findings) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines_of(path, encoding), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            findings.add_bad(number, f"is no JSON: {error}")
            continue
        except RecursionError:
            findings.add_bad(number, "is JSON nested too deep")
            continue
        if not isinstance(value, dict):
            findings.add_bad(number, f"is {type(value).__name__}, not an object with names and values")
            continue
        yield number, value


def _rows_in(path: Path, text: str) -> Iterator[Any]:
    """Give the entries of lists, alone or under a name, and objects one after another."""
    decode = json.JSONDecoder().raw_decode
    at, n_values = _BETWEEN.match(text).end(), 0  # type: ignore[union-attr]
    while at < len(text):
        try:
            value, at = decode(text, at)
        except ValueError as error:
            raise DataError(f"{path}: is no JSON: {error}.") from error
        except RecursionError as error:
            raise DataError(f"{path}: is JSON nested too deep.") from error
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        n_values += 1
        if isinstance(value, list):
            yield from value
        elif not isinstance(value, dict):
            raise DataError(f"{path}: holds {type(value).__name__}, not a list of objects.")
        elif n_values == 1 and at >= len(text):
            yield from _list_in(value)
        else:
            yield value


def _list_in(value: dict[str, Any]) -> list[Any]:
    """The rows that an object holds under a name, or the object alone."""
    found = next((value[name] for name in _LIST_NAMES if isinstance(value.get(name), list)), None)
    if found is not None and found and isinstance(found[0], dict) and "paragraphs" in found[0]:
        return [row for article in found for row in _squad(article)]
    if (
        found is not None
        and all(isinstance(entry, dict) for entry in found[:1])
        and not {"role", "from"} & set((found or [{}])[0])
    ):
        return list(found)
    return [value]


def _squad(article: Any) -> Iterator[dict[str, Any]]:
    """SQuAD's paragraphs with their questions."""
    for paragraph in article.get("paragraphs", []):
        for question in paragraph.get("qas", []):
            yield {**question, "context": paragraph.get("context")}


def _numbered(values: Iterator[Any], findings: Findings) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield number, value
        else:
            findings.add_bad(number, f"is {type(value).__name__}, not an object with names and values")
