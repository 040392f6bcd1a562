"""Files of chunks: Parquet and JSONL, written chunk by chunk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ggtune.errors import DataError, GgtuneError
from ggtune.extras import need
from ggtune.files import replacing
from ggtune.text.chunk import Chunk, Chunker, read_pieces
from ggtune.text.sources import Source

SUFFIXES = (".parquet", ".jsonl")

_GROUP_BYTES = 16 << 20  # of text that a row group holds
_SETTINGS_KEY = b"ggtune.chunk"


class Writer(Protocol):
    """Takes chunks in order."""

    def write(self, chunk: Chunk) -> None:
        """Add a row: chunk, source, index, offset, size."""


@dataclass(frozen=True)
class Chunked:
    """What was written."""

    sizes: tuple[int, ...]  # of the chunks, ascending, as the chunker measures them
    empty: tuple[Path, ...]  # files without text


def chunk_files(sources: Sequence[Source], out: Path, chunker: Chunker, settings: Mapping[str, Any]) -> Chunked:
    """Write the chunks of all files. A chunk's ``source`` is the file's name, or its path where two have that name.

    Raises :class:`DataError` for a file that is no UTF-8 text, or where there is no text at all, and as
    :func:`chunk_writer`.
    """
    n_called = Counter(source.name for source in sources)
    sizes: list[int] = []
    empty = []
    with chunk_writer(out, settings) as writer:
        for source in sources:
            before = len(sizes)
            label = source.name if n_called[source.name] == 1 else source.path.as_posix()
            for chunk in chunker.chunks(read_pieces(source), label):
                writer.write(chunk)
                sizes.append(chunk.size)
            if len(sizes) == before:
                empty.append(source.path)
        if not sizes:
            raise DataError(
                f"{sources[0].path}: there is no text in {'it' if len(sources) == 1 else 'any of the files'}."
            )
    return Chunked(tuple(sorted(sizes)), tuple(empty))


@contextmanager
def chunk_writer(path: Path, settings: Mapping[str, Any]) -> Iterator[Writer]:
    """Open a file that appears when the block has ended well; its suffix says what it is.

    ``settings`` are kept in a Parquet file's metadata under ``ggtune.chunk``. Raises :class:`GgtuneError` for another
    suffix or a missing package, :class:`ggtune.files.WriteError` where it can't be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise GgtuneError(f"{path}: give the file of the chunks one of the suffixes {', '.join(SUFFIXES)}.")
    kind = _Parquet if suffix == ".parquet" else _Lines
    if kind is _Parquet:
        need("pyarrow", "parquet", "Writing Parquet")
    with replacing(path) as temporary:
        writer = kind(temporary, settings)
        try:
            yield writer
        finally:
            writer.close()


class _Lines:
    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, chunk: Chunk) -> None:
        self._file.write(json.dumps(_row(chunk), ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._arrow = pa
        self._schema = pa.schema(
            [
                ("chunk", pa.string()),
                ("source", pa.string()),
                ("index", pa.int64()),
                ("offset", pa.int64()),
                ("size", pa.int64()),
            ],
            metadata={_SETTINGS_KEY: json.dumps(dict(settings)).encode()},
        )
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._n_bytes = 0

    def write(self, chunk: Chunk) -> None:
        self._rows.append(_row(chunk))
        self._n_bytes += len(chunk.text)
        if self._n_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._n_bytes = [], 0


def _row(chunk: Chunk) -> dict[str, Any]:
    return {
        "chunk": chunk.text,
        "source": chunk.source,
        "index": chunk.index,
        "offset": chunk.offset,
        "size": chunk.size,
    }
