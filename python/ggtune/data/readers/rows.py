"""Rows with named values, of whichever format, to items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.trees import conversations_of_tree, is_tree
from ggtune.data.shapes import RowError, Shape, find_shape, item_of
from ggtune.errors import DataError


def items_of(
    rows: Iterable[tuple[int, Mapping[str, Any]]], path: Path, options: ReadOptions, findings: Findings
) -> Iterator[Item]:
    """Make items of rows with their numbers; rows of one file may have different keys.

    Raises :class:`DataError` where the first row has no shape that is known.
    """
    shapes: dict[tuple[str, ...], Shape] = {}
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        if findings.bad:
            return
        raise DataError(
            f"{path}: no usable row: there is only a header." if _is_table(path) else f"{path}: holds no rows."
        )
    if is_tree(first[1]):
        yield from conversations_of_tree([first, *iterator], findings)
        return
    for number, row in (pair for part in ([first], iterator) for pair in part):
        keys = tuple(row)
        shape = shapes.get(keys)
        try:
            if shape is None:
                shape = shapes[keys] = find_shape(keys, options.columns)
                found = [str(key) for key in keys if key not in shape.used and str(key) not in findings.unused]
                findings.unused += found
            item = item_of(row, shape, number)
        except RowError as error:
            if not shapes and not options.skip_bad:  # of the first row: the file's shape, not a row's fault
                raise DataError(f"{path}: {error}.") from error
            findings.add_bad(number, str(error))
            continue
        if shape.text:
            findings.rendered = True  # unless no tag is found in any
        if item is None:
            if any(value not in (None, "") for value in row.values()):
                findings.empty.append(number)
            continue
        yield item


def _is_table(path: Path) -> bool:
    return path.suffix.lower() not in (".jsonl", ".json", ".ndjson", ".parquet", ".arrow")
