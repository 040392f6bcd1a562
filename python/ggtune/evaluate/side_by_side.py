"""Texts in columns beside each other, for a terminal."""

import io
import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LEAST_COLUMN = 28  # characters; narrower ones stand below each other
_GAP = 2
_MOST_CHARACTERS = 320  # of a text that is shown


def side_by_side(titles: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Lines of at most ``width`` characters: a column each, or one below the other where they would be too narrow."""
    if (width - _GAP * (len(titles) - 1)) // max(1, len(titles)) < _LEAST_COLUMN:
        return stacked(titles, texts, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), expand=True, show_edge=False)
    for title in titles:
        table.add_column(Text(title), ratio=1, overflow="fold")
    table.add_row(*(Text(shortened(text) or "(nothing)") for text in texts))
    return rendered(table, width)


def stacked(titles: Sequence[str], texts: Sequence[str], width: int) -> list[str]:
    """Each text behind its title."""
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_header=False, show_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, text in zip(titles, texts, strict=True):
        table.add_row(Text(title), Text(shortened(text) or "(nothing)"))
    return rendered(table, width)


def rendered(table: Table, width: int) -> list[str]:
    """A table as plain lines, without colours."""
    text = io.StringIO()  # standard output, which rich would write to, may be a log on a full disk
    Console(file=text, width=width, color_system=None, legacy_windows=False, force_terminal=False).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def shortened(text: str, most: int = _MOST_CHARACTERS) -> str:
    """A text without white space around it and without empty lines, cut with a mark where it is long.

    Control characters are written out.
    """
    text = re.sub(r"\s*\n\s*", "\n", text.replace("\r\n", "\n"))
    text = "".join(c if c == "\n" or c.isprintable() else " " if c == "\t" else repr(c)[1:-1] for c in text.strip())
    return text if len(text) <= most else text[: most - 4].rstrip() + " ..."
