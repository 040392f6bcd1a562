"""A chart out of characters: the losses of a run over its steps."""

import math
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ggtune.run.history import is_number

LEAST_WIDTH, LEAST_HEIGHT = 24, 5
_CLIPPED = 0.02  # share of the steps' losses at either end that the range leaves out: a first one, spikes
_STYLES = {"step": "bright_black", "smoothed": "cyan", "held-out": "bold yellow"}
_MARKS = {"step": "·", "smoothed": "•", "held-out": "o"}
_PLAIN_MARKS = {"step": ".", "smoothed": "*", "held-out": "o"}
# Unicode's braille patterns: the bit of a dot by column and row of a cell (U+2800, chart)
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))

Points = Sequence[tuple[float, float]]


def loss_chart(records: Sequence[dict[str, Any]], width: int, height: int, *, plain: bool = False) -> list[Text]:
    """Draw loss, smoothed loss and held-out loss as ``height`` lines; none where there is too little of anything.

    Each layer hides those before it. ``plain`` draws with ASCII alone.
    """
    before = points_of(records, "held_out_before")
    layers = {
        "step": points_of(records, "loss"),
        "smoothed": points_of(records, "smoothed_loss"),
        "held-out": [*((0, value) for _, value in before), *points_of(records, "held_out_loss")],
    }
    steps = [x for points in layers.values() for x, _ in points]
    if width < LEAST_WIDTH or height < LEAST_HEIGHT or not steps or min(steps) == max(steps):
        return []
    low, high = _range(layers)
    if not math.isfinite(high - low):
        return []
    labels = _labels(low, high)
    margin = max(map(len, labels)) + 1
    n_columns, n_rows = width - margin - 1, height - 2
    canvas = _Canvas(n_columns, n_rows, (min(steps), max(steps)), (low, high), plain=plain)
    canvas.scatter("step", layers["step"])
    canvas.line("smoothed", layers["smoothed"])
    canvas.scatter("held-out", layers["held-out"])
    corner, side = ("+", "|") if plain else ("└", "│")
    lines = []
    for row in range(n_rows):
        label = {0: labels[0], n_rows // 2: labels[1], n_rows - 1: labels[2]}.get(row, "")
        lines.append(Text(f"{label:>{margin}}{side}", style="bright_black").append_text(canvas.row(row)))
    first, last = f"step {min(steps):.0f}", f"{max(steps):.0f}"
    lines.append(Text(" " * margin + corner + ("-" if plain else "─") * n_columns, style="bright_black"))
    legend = Text()
    marks = _PLAIN_MARKS if plain else _MARKS
    for name, points in layers.items():
        if points:
            legend.append(f"  {marks[name]} {name}", style=_STYLES[name])
    gap = width - margin - 1 - len(first) - len(last) - len(legend)
    axis = Text(" " * (margin + 1) + first, style="bright_black")
    if gap >= 1:
        axis.append_text(legend).append(" " * gap)
    else:
        axis.append(" " * max(1, gap + len(legend)))
    lines.append(axis.append(last, style="bright_black"))
    return lines


def points_of(records: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Step and value of the records that have it."""
    return [(record["step"], record[key]) for record in records if is_number(record.get(key))]


def _range(layers: dict[str, list[tuple[float, float]]]) -> tuple[float, float]:
    """From lowest to highest value, without the rare ones among the steps' own."""
    single = sorted(value for _, value in layers["step"])
    cut = int(_CLIPPED * len(single))
    single = single[cut : len(single) - cut]
    smoothed = sorted(value for _, value in layers["smoothed"])
    smoothed = smoothed[int(_CLIPPED * len(smoothed) / 2) : len(smoothed) - int(_CLIPPED * len(smoothed) / 2)]
    held_out = [value for _, value in layers["held-out"]]
    values = [*single[:1], *single[-1:], *smoothed[:1], *smoothed[-1:], *held_out]
    low, high = min(values), max(values)
    if not high > low:
        low, high = low - max(abs(low), 1e-9) / 100, high + max(abs(high), 1e-9) / 100
    return low, high


def _labels(low: float, high: float) -> tuple[str, str, str]:
    digits = max(0, min(6, 1 - math.floor(math.log10(high - low))))
    if high >= 1e6 or digits == 6:
        return f"{high:.3g}", f"{(low + high) / 2:.3g}", f"{low:.3g}"
    return f"{high:.{digits}f}", f"{(low + high) / 2:.{digits}f}", f"{low:.{digits}f}"


class _Canvas:
    """Cells of characters, ``n_columns`` by ``n_rows``; a line is drawn finer, with the dots of braille patterns."""

    def __init__(
        self, n_columns: int, n_rows: int, x: tuple[float, float], y: tuple[float, float], *, plain: bool
    ) -> None:
        self._size = n_columns, n_rows
        self._x, self._y = x, y
        self._plain = plain
        self._marks = _PLAIN_MARKS if plain else _MARKS
        self._cells = [[(" ", "")] * n_columns for _ in range(n_rows)]

    def _place(self, x: float, y: float, fine: tuple[int, int]) -> tuple[int, int]:
        """Column and row of a point on a grid that is ``fine`` times as fine as the cells."""
        n_columns, n_rows = self._size[0] * fine[0], self._size[1] * fine[1]
        right = (x - self._x[0]) / (self._x[1] - self._x[0])
        down = (self._y[1] - y) / (self._y[1] - self._y[0])
        return (
            min(n_columns - 1, max(0, round(right * (n_columns - 1)))),
            min(n_rows - 1, max(0, round(down * (n_rows - 1)))),
        )

    def scatter(self, name: str, points: Points) -> None:
        """Put a mark at each point."""
        for x, y in points:
            column, row = self._place(x, y, (1, 1))
            self._cells[row][column] = self._marks[name], _STYLES[name]

    def line(self, name: str, points: Points) -> None:
        """Join the points."""
        fine = (1, 1) if self._plain else (2, 4)
        values: dict[int, list[int]] = {}
        for x, y in points:
            column, row = self._place(x, y, fine)
            values.setdefault(column, []).append(row)
        dots: dict[tuple[int, int], int] = {}
        before: tuple[int, int] | None = None
        for column in sorted(values):
            row = round(sum(values[column]) / len(values[column]))
            for dot in _between(before or (column, row), (column, row)):
                cell = dot[0] // fine[0], dot[1] // fine[1]
                dots[cell] = dots.get(cell, 0) | _DOTS[dot[0] % fine[0]][dot[1] % fine[1]]
            before = column, row
        for (column, row), bits in dots.items():
            mark = self._marks[name] if self._plain else chr(0x2800 + bits)
            self._cells[row][column] = mark, _STYLES[name]

    def row(self, row: int) -> Text:
        """Return a row of cells."""
        text = Text()
        for mark, style in self._cells[row]:
            text.append(mark, style=style)
        return text


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the grid's points on the way, both ends included."""
    n = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * i / n), round(start[1] + (end[1] - start[1]) * i / n))
        for i in range(n + 1)
    ]
