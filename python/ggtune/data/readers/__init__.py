"""Readers of data files: one module for each format, and the list of them.

A new format is a module with a class like the others, and a line in :data:`READERS`.
"""

from __future__ import annotations

from pathlib import Path

from ggtune.data.readers.csv_table import CsvReader
from ggtune.data.readers.json_lines import JsonLinesReader
from ggtune.data.readers.json_list import JsonReader
from ggtune.data.readers.parquet import ArrowReader, ParquetReader
from ggtune.data.readers.reader import Reader, ReadOptions
from ggtune.data.readers.text_files import SftReader, TextReader
from ggtune.errors import DataError

READERS: tuple[Reader, ...] = (
    ParquetReader(),
    ArrowReader(),
    CsvReader(),
    JsonLinesReader(),
    JsonReader(),
    SftReader(),
    TextReader(),
)
_FOREIGN = {".xlsx", ".xls", ".ods", ".gguf", ".zip", ".gz", ".pdf", ".docx", ".epub"}


def has_reader(path: Path) -> bool:
    """Whether a file's suffix tells its format."""
    return any(path.suffix.lower() in reader.suffixes for reader in READERS)


def reader_for(path: Path, head: str, options: ReadOptions) -> Reader:
    """Find the reader of a file by ``options.format``, its suffix, or its first characters.

    Raises :class:`DataError` for a format that nothing here reads.
    """
    by_name = {reader.name: reader for reader in READERS}
    if options.format:
        if options.format not in by_name:
            raise DataError(f"There is no data format {options.format!r}. Formats: {', '.join(by_name)}.")
        return by_name[options.format]
    suffix = path.suffix.lower()
    if suffix in _FOREIGN:
        raise DataError(f"{path}: {suffix} files are not read. Export the table as CSV, or the text as plain text.")
    for reader in READERS:
        if suffix in reader.suffixes:
            return reader
    return next(reader for reader in READERS if reader.claims(head, options))
