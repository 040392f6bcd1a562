"""JSON lines: an object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.decoding import encoding_of, lines_of
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of


class JsonLinesReader:
    """Numbers count lines."""

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
        findings.unit = "line"
        encoding = encoding_of(path, findings.notes)
        yield from items_of(_objects(path, encoding, findings), path, options, findings)


def _objects(path: Path, encoding: str, findings: Findings) -> Iterator[tuple[int, Mapping[str, Any]]]:
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
