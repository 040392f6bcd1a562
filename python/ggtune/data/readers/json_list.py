"""A JSON file: a list of objects, alone or under a name; SQuAD's paragraphs with their questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggtune.data.readers.json_rows import first_value, read_json
from ggtune.data.readers.reader import Findings, Item, ReadOptions


class JsonReader:
    """Numbers count the objects, from 1."""

    name = "json"
    suffixes = (".json",)

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By a list of objects, or an object of several lines."""
        start = head.lstrip()
        if start.startswith("{"):
            return isinstance(first_value(head), dict)
        return start.startswith("[") and start[1:].lstrip().startswith("{")

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the objects of the list. The file is read at once. Raises :class:`DataError`."""
        yield from read_json(path, options, findings, lines=False)
