"""What a reader of a data format is, and how it says what is wrong with rows."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ggtune.data.conversation import Conversation, Document
from ggtune.data.shapes import Columns
from ggtune.errors import DataError

Item = Conversation | Document
SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class ReadOptions:
    """What the user says about a data file.

    ``format`` is a reader's name, "" to find it; ``sample_start`` the marker of ``<SFT>`` text, "" for plain text, None
    where not given; ``skip_bad`` goes on without rows that can't be used; ``encoding`` is that of text files, "" to
    find it.
    """

    format: str = ""
    columns: Columns = field(default_factory=Columns)
    sample_start: str | None = None
    skip_bad: bool = False
    encoding: str = ""

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], *, skip_bad: bool | None = None) -> ReadOptions:
        """Take them from the settings of a run, as ``config.json`` holds them, ``skip_bad`` too where it is None."""

        def text(name: str) -> str:
            return str(settings.get(name) or "")

        roles = ("question", "answer", "context", "weight", "category")
        columns = Columns(*(text(f"{role}_column") or None for role in roles))
        start = settings.get("sample_start")
        return cls(
            text("data_format"),
            columns,
            None if start is None else str(start),
            bool(settings.get("skip_bad")) if skip_bad is None else skip_bad,
            text("encoding"),
        )


@dataclass
class Findings:
    """What a reader notes beside the items."""

    unit: str = "row"  # what numbers count
    rendered: bool = False  # documents are rendered conversations: their answers stand behind tags
    empty: array[int] = field(default_factory=lambda: array("I"))
    bad: list[tuple[int, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # columns
    notes: list[str] = field(default_factory=list)

    def add_bad(self, number: int, reason: str) -> None:
        """Note a row that can't be used."""
        self.bad.append((number, reason))

    def check(self, path: Path, options: ReadOptions) -> None:
        """Raise :class:`DataError` with all bad rows, the first twenty written out, unless they are to be skipped."""
        if not self.bad or options.skip_bad:
            return
        shown = [f"{self.unit} {number}: {reason}" for number, reason in self.bad[:SHOWN_PROBLEMS]]
        more = len(self.bad) - len(shown)
        count = "1 row" if len(self.bad) == 1 else f"{len(self.bad)} rows"
        raise DataError(
            f"{path}: {count} can't be used:\n  "
            + "\n  ".join(shown)
            + (f"\n  ... and {more} more" if more else "")
            + "\nMend them, or go on without them by --skip-bad."
        )


class Reader(Protocol):
    """Reads one format."""

    @property
    def name(self) -> str:
        """For ``--format``."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of its files, in lower case."""

    def claims(self, head: str, options: ReadOptions) -> bool:
        """Whether a file without a known suffix is of this format, by its first characters."""

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give what a file holds, row by row, and note what can't be used.

        Raises :class:`DataError` where the file as a whole can't be read.
        """
