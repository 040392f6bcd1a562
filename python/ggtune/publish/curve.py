"""The loss of a run as a table and as a plot of characters, which any reader of Markdown can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_ROWS = 12  # of the table, beside those with a held-out loss
_MAX_ROWS = 24
_WIDTH, _HEIGHT = 64, 12  # of the plot, in characters
_TRAINED, _HELD_OUT = "·", "o"


def loss_table(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table: steps at even distances, the first, the last and those with a held-out loss."""
    chosen = sorted({*_evenly(range(len(metrics)), _ROWS), *_evenly(_held_out_rows(metrics), _MAX_ROWS - _ROWS)})
    if not chosen:
        return []
    lines = ["| step | epoch | loss | smoothed | held-out |", "|---:|---:|---:|---:|---:|"]
    for i in chosen:
        record = metrics[i]
        losses = [_shown(number(record, key), 4) for key in ("loss", "smoothed_loss", "held_out_loss")]
        lines.append(f"| {record['step']} | {_shown(number(record, 'epoch'), 2)} | {' | '.join(losses)} |")
    return lines


def loss_plot(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a plot of the loss over the steps; none for fewer than two steps."""
    trained, held_out = _points(metrics, "loss"), _points(metrics, "held_out_loss")
    values = [value for _, value in trained + held_out]
    if len(trained) < 2 or max(values) <= min(values):
        return []
    first, last = trained[0][0], trained[-1][0]
    low, high = min(values), max(values)
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for mark, points in ((_TRAINED, trained), (_HELD_OUT, held_out)):
        columns: dict[int, list[float]] = {}
        for step, value in points:
            column = round((step - first) / max(1, last - first) * (_WIDTH - 1))
            columns.setdefault(min(max(column, 0), _WIDTH - 1), []).append(value)
        for column, bucket in columns.items():
            mean = sum(bucket) / len(bucket)
            grid[round((high - mean) / (high - low) * (_HEIGHT - 1))][column] = mark
    labels = {0: f"{high:.3f}", _HEIGHT // 2: f"{high - (high - low) * (_HEIGHT // 2) / (_HEIGHT - 1):.3f}"}
    labels[_HEIGHT - 1] = f"{low:.3f}"
    margin = max(map(len, labels.values()))
    lines = [f"{labels.get(i, ''):>{margin}} |{''.join(row)}".rstrip() for i, row in enumerate(grid)]
    lines.append(" " * margin + " +" + "-" * _WIDTH)
    lines.append(" " * (margin + 2) + f"{first}{last:>{_WIDTH - len(str(first))}}")
    legend = f"{_TRAINED} loss of a step" + (f"   {_HELD_OUT} held-out loss" if held_out else "")
    return [*lines, " " * (margin + 2) + legend]


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number, None where there is none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _points(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(record["step"], value) for record in metrics if (value := number(record, key)) is not None]


def _held_out_rows(metrics: Sequence[Mapping[str, Any]]) -> list[int]:
    return [i for i, record in enumerate(metrics) if number(record, "held_out_loss") is not None]


def _evenly(indices: Sequence[int], n: int) -> list[int]:
    """Choose at most ``n``, the first and the last among them."""
    if len(indices) <= n:
        return list(indices)
    return [indices[round(i * (len(indices) - 1) / (n - 1))] for i in range(n)]


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
