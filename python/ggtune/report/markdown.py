"""Parts of a report as Markdown that readmes, issue trackers and model cards show as it is meant."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence

from ggtune.report.blocks import Block, Figure, Items, Paragraph, Question, Questions, Report, Section, Table
from ggtune.report.plots import Plot
from ggtune.report.texts import shown_text

MARK = "<!-- ggtune report -->"
_MOST_CELL = 300
_MOST_TEXT = 1500
# an underscore within a word is no mark
_ESCAPED = re.compile(r"[|*`\[\]\\~#$]|(?<![^\W_])_|_(?![^\W_])")
_SIGNS = {"good": "✓ ", "warning": "⚠ ", "error": "✗ "}

Draw = Callable[[Plot], str | None]
"""Gives the address of a plot's picture, or None where there is none."""


def markdown(report: Report, draw: Draw) -> str:
    """Write a whole report."""
    head = [MARK, "", f"# {cell(report.title)}", ""]
    if report.subtitle:
        state = f"**{report.state}** · " if report.state else ""
        head += [f"{state}{cell(report.subtitle)}", ""]
    parts = ["\n".join(section_lines(section, draw)) for section in report.sections]
    return "\n".join([*head, "\n\n".join(parts), "", report.made, ""])


def section_lines(section: Section, draw: Draw, level: int = 2) -> list[str]:
    """Lines of a section with its title."""
    return [f"{'#' * level} {section.title}", "", *block_lines(section.blocks, draw, level)]


def block_lines(blocks: Sequence[Block], draw: Draw, level: int = 2) -> list[str]:
    """Lines of some blocks, an empty one between two."""
    lines: list[str] = []
    for block in blocks:
        found = list(_lines(block, draw, level))
        if found:
            lines += [*([""] if lines else []), *found]
    return lines


def _lines(block: Block, draw: Draw, level: int) -> Iterator[str]:
    if isinstance(block, Paragraph):
        if not block.text:
            yield f"{'#' * (level + 1)} {cell(block.label)}"
        else:
            label = f"**{cell(block.label)}.** " if block.label else ""
            yield f"{_SIGNS.get(block.tone, '')}{label}{line(block.text)}"
    elif isinstance(block, Items):
        yield from (f"- {line(text)}" for text in block.texts)
    elif isinstance(block, Figure):
        address = draw(block.plot)
        if address:
            yield f"![{cell(block.plot.title)}]({address})"
            yield ""
        yield f"{cell(block.plot.title)}: {line(block.plot.description)}"
    elif isinstance(block, Table):
        yield from _table_lines(block, level)
    elif isinstance(block, Questions):
        for i, question in enumerate(block.questions):
            yield from [""] * (i > 0)
            yield from _question_lines(question)


def _table_lines(block: Table, level: int) -> Iterator[str]:
    if block.folded:
        yield "<details>"
        yield f"<summary>{cell(block.title)}</summary>"
        yield ""
    elif block.title:
        yield f"{'#' * (level + 1)} {cell(block.title)}"
        yield ""
    yield from table(block.rows, block.head, numbers=block.numbers)
    if block.folded:
        yield ""
        yield "</details>"


def _question_lines(question: Question) -> Iterator[str]:
    yield f"**{line(question.text)}**" + (f" ({cell(question.note)})" if question.note else "")
    yield ""
    rows = [[answer.label, answer.text or "(empty)", answer.note] for answer in question.answers]
    if not any(row[2] for row in rows):
        rows = [row[:2] for row in rows]
    yield from table(rows, limit=_MOST_TEXT)


def table(
    rows: Sequence[Sequence[str]], head: Sequence[str] = (), *, numbers: bool = False, limit: int = _MOST_CELL
) -> list[str]:
    """Lines of a table; ``head`` may be empty, which Markdown has no tables for."""
    if not rows:
        return []
    titles = [*head] or [""] * len(rows[0])
    rule = ["---", *(["---:" if numbers else "---"] * (len(titles) - 1))]
    return [
        "| " + " | ".join(cell(text, limit) for text in titles) + " |",
        "|" + "|".join(rule) + "|",
        *("| " + " | ".join(cell(text, limit) for text in row) + " |" for row in rows),
    ]


def cell(text: str, limit: int = _MOST_CELL) -> str:
    """Make a text that Markdown shows as it is, on one line."""
    return _escaped(" ".join(shown_text(text, limit).split()))


def line(text: str) -> str:
    """As :func:`cell`, of a longer text."""
    return cell(text, _MOST_TEXT)


def _escaped(text: str) -> str:
    return _ESCAPED.sub(lambda found: f"&#{ord(found[0])};", html.escape(text, quote=False))
