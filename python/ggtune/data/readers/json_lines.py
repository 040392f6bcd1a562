"""JSON lines: an object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ggtune.data.readers.json_rows import read_json
from ggtune.data.readers.reader import Findings, Item, ReadOptions


class JsonLinesReader:
    """Numbers count lines; where the content is a list, or objects of several lines, they count objects."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By an object on the first line."""
        first, _, rest = head.lstrip().partition("\n")
        if not first.startswith("{") or not first.rstrip().endswith("}"):
            return False
        try:
            return isinstance(json.loads(first), dict) and (not rest.strip() or rest.lstrip().startswith("{"))
        except ValueError:
            return False

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the objects one after another: the file may be larger than memory. Raises :class:`DataError`."""
        yield from read_json(path, options, findings, lines=True)
