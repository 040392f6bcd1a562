"""A file of lines that another process appends to, read bit by bit: each look costs what is new."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_LOOK_BYTES = 4 << 20  # most that one look reads
_LONGEST_LINE = 1 << 20  # a longer line is passed over
_CHECKED_BYTES = 64  # before the place reached: other ones there mean another file


class Look(NamedTuple):
    """What a look at the file has found."""

    lines: list[bytes]  # whole ones, without their ends
    began_anew: bool  # what was read before is no longer in the file: it was cut, replaced or removed
    is_more: bool  # another look finds more at once


class Tail:
    """Reads on from where it was. Knows a file that was written anew: shorter, another one, or other bytes before it.

    A last line that has no end yet is left for a later look.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start_anew()

    def _start_anew(self) -> None:
        self._place = 0  # in bytes; before it all lines are read
        self._before = b""  # the bytes before ``_place``
        self._is_inside = False  # of a line that is too long
        self._signature: tuple[int, ...] = ()

    def look(self) -> Look:
        """Read what is new, nothing where the file can't be read."""
        try:
            with self.path.open("rb", buffering=0) as file:
                return self._read(file)
        except OSError:
            return self._gone()

    def _gone(self) -> Look:
        had = self._place > 0
        self._start_anew()
        return Look([], had, False)

    def _read(self, file: io.FileIO) -> Look:
        stat = os.fstat(file.fileno())
        signature = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if signature == self._signature:
            return Look([], False, False)
        began_anew = self._place > 0 and not self._is_same(file, stat)
        if began_anew:
            self._start_anew()
        file.seek(self._place)
        data = file.read(_LOOK_BYTES)
        end = data.rfind(b"\n") + 1
        lines: list[bytes] = []
        if not end and len(data) > _LONGEST_LINE:
            self._is_inside, end = True, len(data)
        else:
            lines = data[:end].split(b"\n")[:-1]
            if lines and self._is_inside:
                lines, self._is_inside = lines[1:], False
        if end:
            self._place += end
            self._before = (self._before + data[:end])[-_CHECKED_BYTES:]
        is_more = end > 0 and self._place < stat.st_size
        self._signature = () if is_more else signature
        return Look([line for line in lines if len(line) <= _LONGEST_LINE], began_anew, is_more)

    def _is_same(self, file: io.FileIO, stat: os.stat_result) -> bool:
        if self._signature and self._signature[:2] != (stat.st_dev, stat.st_ino):
            return False
        if stat.st_size < self._place:
            return False
        file.seek(self._place - len(self._before))
        return file.read(len(self._before)) == self._before


def json_objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the JSON objects among the lines; others are passed over."""
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")  # four times as quick as one after another
        if len(values) != len(lines):
            raise ValueError("several values on a line")
    except (ValueError, RecursionError):
        values = [_value(line) for line in lines]
    return [value for value in values if isinstance(value, dict)]


def _value(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
