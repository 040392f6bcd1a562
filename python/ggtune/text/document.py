"""A text while it is cleaned: lines that know where they came from, and a record of all that was taken or changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Removed:
    """A passage that was taken out. ``line`` is that of the file, from 1, at which it starts."""

    kind: str
    line: int
    n_lines: int
    text: str


@dataclass(frozen=True)
class Block:
    """Lines ``start`` to ``end`` (exclusive) of a document, none of them blank; ``gap`` blank lines are before it."""

    start: int
    end: int
    gap: int


class Document:
    """Lines without their line feeds."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.numbers = list(range(1, len(self.lines) + 1))
        self.removed: list[Removed] = []

    def text(self, start: int, end: int) -> str:
        """Return lines ``start`` to ``end`` (exclusive)."""
        return "\n".join(self.lines[start:end])

    def drop(self, kind: str, ranges: Iterable[tuple[int, int]]) -> None:
        """Take out ranges of lines (the end exclusive) that do not overlap; blank ones go without a record."""
        for start, end in sorted(ranges, reverse=True):
            written = [i for i in range(start, end) if self.lines[i].strip()]
            if written:
                text = self.text(written[0], written[-1] + 1)
                self.removed.append(Removed(kind, self.numbers[written[0]], text.count("\n") + 1, text))
            self._delete(start, end)

    def cut(self, kind: str, start: tuple[int, int], end: tuple[int, int], glue: str = "") -> None:
        """Take out what lies between two places, each a line and a column, and put ``glue`` there.

        Where nothing is left of the lines, they go, too.
        """
        (first, column), (last, after) = start, end
        left, right = self.lines[first][:column], self.lines[last][after:]
        taken = self.text(first, last + 1)[column : len(self.text(first, last + 1)) - len(right)]
        self.removed.append(Removed(kind, self.numbers[first], last - first + 1, taken))
        if (left + right).strip():
            self.lines[first : last + 1] = [left + glue + right]
            self.numbers[first : last + 1] = [self.numbers[first if left.strip() else last]]
        else:
            self._delete(first, last + 1)

    def _delete(self, start: int, end: int) -> None:
        """Delete lines; of the blank ones before and behind them the larger number stays."""
        before = after = 0
        while before < start and not self.lines[start - before - 1].strip():
            before += 1
        while end + after < len(self.lines) and not self.lines[end + after].strip():
            after += 1
        end += min(before, after)
        del self.lines[start:end], self.numbers[start:end]

    def blocks(self, start: int = 0, end: int | None = None) -> list[Block]:
        """Return the runs of lines that are not blank between two lines."""
        found: list[Block] = []
        begun, gap = None, 0
        last = len(self.lines) if end is None else end
        for i in range(start, last + 1):
            if i < last and self.lines[i].strip():
                begun = i if begun is None else begun
            elif begun is not None:
                found.append(Block(begun, i, gap))
                begun, gap = None, 1
            else:
                gap += 1
        return found
