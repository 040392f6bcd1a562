"""The lines behind the rows of a table: an unclosed double quote takes many for one row, which are read again then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator


class RowLines(Iterator[str]):
    """Lines for ``csv.reader``; those of the row that is being read are kept. A byte order mark is dropped."""

    def __init__(self, lines: Iterable[str], n_before: int) -> None:
        """``n_before``: lines that were read before."""
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.row: list[str] = []
        self.last = n_before  # number of the last line that was given, from 1

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        if line[:1] == "\ufeff":  # of a file that was put behind another
            line = line[1:]
        self.last += 1
        self.row.append(line)
        return line

    def begin_row(self) -> None:
        """The next line is the first of a row."""
        self.row.clear()

    @property
    def first(self) -> int:
        """Number of the row's first line."""
        return self.last - len(self.row) + 1

    def back_to(self, number: int) -> None:
        """Give the row's lines from this number on once more."""
        kept = number - self.first
        self._again.extendleft(reversed(self.row[kept:]))
        self.last -= len(self.row) - kept
        del self.row[kept:]


def open_quote(lines: list[str], delimiter: str) -> int:
    """Find the line in which the last quoted cell of a broken row opens, from 0."""
    opened, quoted, at_start = 0, False, True
    for number, line in enumerate(lines):
        at = 0
        while at < len(line):
            if quoted:
                closing = line.find('"', at)
                if closing < 0:
                    break
                at = closing + 2
                if line[closing + 1 : at] != '"':
                    quoted, at = False, closing + 1
                    if line[at : at + 1] not in (delimiter, "\r", "\n", ""):
                        return opened
                continue
            if at_start:
                at += len(line) - at - len(line[at:].lstrip(" "))
                at_start = False
                if line[at : at + 1] == '"':
                    opened, quoted, at = number, True, at + 1
                    continue
            next_cell = line.find(delimiter, at)
            if next_cell < 0:
                break
            at, at_start = next_cell + 1, True
    return opened
