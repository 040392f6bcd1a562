"""A JSON file: a list of objects, alone or under a name; SQuAD's paragraphs with their questions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.decoding import read_text
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of
from ggtune.errors import DataError

_LIST_NAMES = ("data", "train", "rows", "examples", "instances", "conversations", "items")


class JsonReader:
    """Numbers count the objects, from 1."""

    name = "json"
    suffixes = (".json",)

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By a list of objects."""
        return head.lstrip().startswith("[") and head.lstrip()[1:].lstrip().startswith("{")

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the objects of the list. The file is read at once. Raises :class:`DataError`."""
        text = read_text(path, findings.notes)
        try:
            value = json.loads(text)
        except ValueError as error:
            if _is_lines(text):
                from ggtune.data.readers.json_lines import JsonLinesReader

                yield from JsonLinesReader().read(path, options, findings)
                return
            raise DataError(f"{path}: is no JSON: {error}.") from error
        except RecursionError as error:
            raise DataError(f"{path}: is JSON nested too deep.") from error
        yield from items_of(_objects(path, _list_in(path, value), findings), path, options, findings)


def _is_lines(text: str) -> bool:
    first = text.lstrip().partition("\n")[0]
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _list_in(path: Path, value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
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
    raise DataError(f"{path}: holds {type(value).__name__}, not a list of objects.")


def _squad(article: Any) -> Iterator[dict[str, Any]]:
    for paragraph in article.get("paragraphs", []):
        for question in paragraph.get("qas", []):
            yield {**question, "context": paragraph.get("context")}


def _objects(path: Path, values: list[Any], findings: Findings) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, dict):
            yield number, value
        else:
            findings.add_bad(number, f"is {type(value).__name__}, not an object with names and values")
