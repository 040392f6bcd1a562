"""What a report consists of, before it is a page or Markdown. A text may hold anything: who writes it, escapes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ggtune.report.plots import Plot

Tone = Literal["plain", "note", "good", "warning", "error"]


@dataclass(frozen=True)
class Paragraph:
    """Text in sentences. ``label`` stands in front of it, in bold."""

    text: str
    tone: Tone = "plain"
    label: str = ""
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]
    kind: Literal["items"] = "items"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its head. ``folded`` under ``title``: most readers don't need it."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    numbers: bool = False  # cells are numbers, but for the first
    folded: bool = False
    notes: bool = False  # the last cell only explains: it goes first where there is no room
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Figure:
    """A plot, drawn in one size for wide screens and paper, and where it is the main one, in another for phones."""

    plot: Plot
    main: bool = False
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True)
class Answer:
    """A text of a question's answers: whose it is, and what is to be said of it."""

    label: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Question:
    """A question and what was answered, side by side."""

    text: str
    answers: Sequence[Answer]
    note: str = ""


@dataclass(frozen=True)
class Questions:
    """Questions with their answers."""

    questions: Sequence[Question]
    kind: Literal["questions"] = "questions"


Block = Paragraph | Items | Table | Figure | Questions


@dataclass(frozen=True)
class Section:
    """A part of the report with a title; ``key`` is its anchor."""

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    subtitle: str
    state: str  # of a single run: running, finished, ...
    sections: Sequence[Section]
    made: str  # when and with what

    def plots(self) -> Iterator[Plot]:
        """Every figure, in order."""
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Figure):
                    yield block.plot
