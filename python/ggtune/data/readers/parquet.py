"""Parquet and Arrow files (the latter as Hugging Face's ``datasets`` saves them), by pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.rows import items_of
from ggtune.errors import DataError, GgtuneError

_BATCH_ROWS = 1024


class ParquetReader:
    """Numbers count rows, from 1."""

    name = "parquet"
    suffixes = (".parquet",)

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By the four bytes that such a file starts with."""
        return head.startswith("PAR1")

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the rows, a batch in memory at a time. Raises :class:`DataError`."""
        yield from items_of(_numbered(partial(_parquet_batches, path)), path, options, findings)


class ArrowReader:
    """Numbers count rows, from 1."""

    name = "arrow"
    suffixes = (".arrow",)

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By the suffix alone."""
        return False

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the rows, a batch in memory at a time. Raises :class:`DataError`."""
        yield from items_of(_numbered(partial(_arrow_batches, path)), path, options, findings)


def _numbered(batches: Callable[[bool], Iterator[Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Give the rows of record batches with their numbers."""
    whole = _whole_numbers(batches)
    number = 0
    for batch in batches(False):
        for row in batch.to_pylist():
            number += 1
            for name in whole:
                value = row[name]
                row[name] = None if value is None or value != value else int(value)
            yield number, row


def _whole_numbers(batches: Callable[[bool], Iterator[Any]]) -> list[str]:
    """Names of the columns of floats that were whole numbers: pandas makes 1.0 of 1 where another row has no value."""
    pyarrow = _pyarrow()
    compute, with_gaps = pyarrow.compute, set()
    candidates: list[str] | None = None
    for batch in batches(True):
        if candidates is None:
            names = batch.schema.names
            floats = [field.name for field in batch.schema if pyarrow.types.is_floating(field.type)]
            candidates = [name for name in floats if names.count(name) == 1]
        for name in list(candidates):
            values = batch.column(batch.schema.get_field_index(name))
            gaps = compute.is_null(values, nan_is_null=True)
            if compute.any(gaps).as_py():
                with_gaps.add(name)
            there = values.filter(compute.invert(gaps))
            whole = compute.and_(compute.is_finite(there), compute.equal(compute.floor(there), there))
            if len(there) and not compute.all(whole).as_py():
                candidates.remove(name)
        if not candidates:
            return []
    return [name for name in candidates or [] if name in with_gaps]


def _pyarrow() -> Any:
    try:
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise GgtuneError("Parquet and Arrow files need pyarrow: pip install 'ggtune[parquet]'.") from error
    return pyarrow


def _parquet_batches(path: Path, floats_only: bool) -> Iterator[Any]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            floats = [field.name for field in schema if pyarrow.types.is_floating(field.type)]
            if floats or not floats_only:
                yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=floats if floats_only else None)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole Parquet file: {_one_line(error)}.") from error


def _arrow_batches(path: Path, floats_only: bool) -> Iterator[Any]:
    """``floats_only`` changes nothing: the file is mapped, and what nobody looks at is not read."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches = iter(pyarrow.ipc.open_stream(source))
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole Arrow file: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
