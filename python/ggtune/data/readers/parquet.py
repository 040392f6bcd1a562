"""Parquet and Arrow files (the latter as Hugging Face's ``datasets`` saves them), by pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        yield from items_of(_numbered(_parquet_batches(path)), path, options, findings)


class ArrowReader:
    """Numbers count rows, from 1."""

    name = "arrow"
    suffixes = (".arrow",)

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By the suffix alone."""
        return False

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the rows, a batch in memory at a time. Raises :class:`DataError`."""
        yield from items_of(_numbered(_arrow_batches(path)), path, options, findings)


def _numbered(batches: Iterator[list[dict[str, Any]]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    for batch in batches:
        for row in batch:
            number += 1
            yield number, row


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise GgtuneError("Parquet and Arrow files need pyarrow: pip install 'ggtune[parquet]'.") from error
    return pyarrow


def _parquet_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole Parquet file: {_one_line(error)}.") from error


def _arrow_batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                reader = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                reader = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in reader:
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield batch.slice(start, _BATCH_ROWS).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: is no whole Arrow file: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
