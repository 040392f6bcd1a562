"""``metrics.jsonl``: one JSON object per optimizer step."""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ggtune.files import WriteError, replace_text
from ggtune.system import format_bytes

_TAIL_BYTES = 1 << 20


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines up to the first that is not whole (a killed process may leave one)."""
    return _records(path.read_bytes().split(b"\n")[:-1]) if path.exists() else []


def _records(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            break
        records.append(record)
    return records


def last_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the records in the last mebibyte of the file; none where it can't be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return _records(lines[1:-1] if size > _TAIL_BYTES else lines[:-1])


class MetricsFile:
    """Appends lines; each is on its way to the disk when :meth:`write` returns.

    Where the disk is full, lines wait in memory for a later call, and the file holds whole ones only.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Keep the lines up to ``after_step`` of a file that is there, so that each step stands once."""
        self._path = path
        self._waiting = b""
        self._open(after_step)

    def _open(self, after_step: int) -> None:
        kept = [record for record in read_metrics(self._path) if record["step"] <= after_step]
        replace_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        try:
            self._file = self._path.open("r+b", buffering=0)
            self._size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise WriteError(f"can't write {self._path}: {error.strerror}") from error

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``. Raises :class:`WriteError`."""
        self._file.close()
        waiting, self._waiting = self._waiting, b""
        self._open(step)
        for line in waiting.splitlines(keepends=True):
            if json.loads(line)["step"] <= step:
                self._waiting += line

    def write(self, record: Mapping[str, Any]) -> str | None:
        """Append one line. Where that fails, the text says so to the user."""
        had_failed = bool(self._waiting)
        self._waiting += json.dumps(record).encode() + b"\n"
        problem = self.flush()
        return None if had_failed else problem

    def flush(self) -> str | None:
        """Write what waits. Where that fails, the text says so to the user."""
        if not self._waiting:
            return None
        try:
            self._file.seek(self._size)  # over what a failed write may have left
            n_written = self._file.write(self._waiting)
            if n_written != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            return (
                f"warning: can't write {self._path}: {error.strerror or error} "
                f"({format_bytes(len(self._waiting))} needed): kept in memory and tried again after each step"
            )
        self._size += len(self._waiting)
        self._waiting = b""
        return None
