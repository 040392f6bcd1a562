"""A picture of a sweep: the held-out loss of every trial as it went on, and the best of each by the settings."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ggtune.config import flag
from ggtune.extras import need
from ggtune.sweep.sheet import DIVERGED, FAILED, FINISHED, Results, Sheet
from ggtune.sweep.space import described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[tuple[int, float]]]

_SIZE_INCHES, _DPI = (11.0, 4.6), 150
_MOST_NAMES = 12  # in the legend
_LOG_FROM = 5.0  # a setting whose values are so many times apart is drawn on a logarithmic scale
_MOST_TICKS = 8  # of more values not every one is written
_MARKS = ("o", "s", "^", "D", "v", "P")


def sweep_png(sheet: Sheet, results: Results, curves: Curves) -> bytes:
    """Draw it. Raises :class:`ggtune.errors.GgtuneError` where matplotlib is missing."""
    need("matplotlib", "report", "the plot of a sweep")
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.subplots(1, 2)
    palette = colormaps["viridis"]
    n = len(sheet.trials)
    colours = {trial.name: palette(0.9 * i / max(1, n - 1)) for i, trial in enumerate(sheet.trials)}
    _draw_curves(axes[0], sheet, results, curves, colours)
    _draw_values(axes[1], sheet, results)
    for each in axes:
        each.grid(alpha=0.3, linewidth=0.6)
        each.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": "ggtune"})
    return data.getvalue()


def _draw_curves(axes: "Axes", sheet: Sheet, results: Results, curves: Curves, colours: Mapping[str, object]) -> None:
    best = _best(results)
    for trial in sheet.trials:
        points, outcome = curves[trial.name], results.outcomes[trial.name]
        if not points:
            continue
        steps, losses = zip(*points, strict=True)
        is_best, has_failed = trial.name == best, outcome.state in (DIVERGED, FAILED)
        axes.plot(
            steps,
            losses,
            color=colours[trial.name],
            linewidth=2.4 if is_best else 1.3,
            linestyle="-" if outcome.state == FINISHED else "--",
            marker="o",
            markersize=3,
            label=described(trial.changes) + (" (best)" if is_best else f" ({outcome.state})" if has_failed else ""),
            zorder=3 if is_best else 2,
        )
        if has_failed:
            axes.plot(steps[-1:], losses[-1:], "x", color="#c02020", markersize=8, zorder=4)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.set_title("held-out loss of the trials (dashed: left early)", fontsize=10)
    _cut(axes, [loss for points in curves.values() for _, loss in points])
    if len(axes.lines) > 0 and len(sheet.trials) <= _MOST_NAMES:
        axes.legend(fontsize=7, frameon=False)


def _draw_values(axes: "Axes", sheet: Sheet, results: Results) -> None:
    """Put the best loss of each trial over the setting with the most values, a line for each value of the others."""
    values = {name: sorted({trial.changes[name] for trial in sheet.trials}) for name in sheet.axes}
    name = max(values, key=lambda key: len(values[key]))
    others = [other for other in values if other != name and len(values[other]) > 1]
    lines: dict[str, list[tuple[float, float, bool]]] = {}
    for trial in sheet.trials:
        outcome = results.outcomes[trial.name]
        if outcome.best_held_out is None or outcome.state in (DIVERGED, FAILED):
            continue
        label = described({other: trial.changes[other] for other in others})
        point = (float(trial.changes[name]), outcome.best_held_out, outcome.state == FINISHED)
        lines.setdefault(label, []).append(point)
    for i, (label, points) in enumerate(lines.items()):
        points.sort()
        x, y = [point[0] for point in points], [point[1] for point in points]
        mark = _MARKS[i % len(_MARKS)]
        line = axes.plot(x, y, linewidth=1.2, marker=mark, label=label)[0]
        for at, loss, has_ended in points:
            face = line.get_color() if has_ended else "white"
            axes.plot(at, loss, marker=mark, color=line.get_color(), markerfacecolor=face)
    shown = sorted({point[0] for points in lines.values() for point in points})
    if shown and shown[0] > 0 and shown[-1] >= _LOG_FROM * shown[0]:
        axes.set_xscale("log")
        axes.minorticks_off()
    if len(shown) <= _MOST_TICKS:
        axes.set_xticks(shown, [f"{value:g}" for value in shown])
    axes.set_xlabel(flag(name))
    axes.set_ylabel("best held-out loss")
    axes.set_title("best of each trial (hollow: left early)", fontsize=10)
    _cut(axes, [point[1] for points in lines.values() for point in points])
    if others and len(lines) <= _MOST_NAMES:
        axes.legend(fontsize=7, frameon=False)


def _best(results: Results) -> str:
    known = [
        (outcome.best_held_out, name)
        for name, outcome in results.outcomes.items()
        if outcome.best_held_out is not None and outcome.state not in (DIVERGED, FAILED)
    ]
    return min(known)[1] if known else ""


def _cut(axes: "Axes", losses: Sequence[float]) -> None:
    """Keep a trial that has diverged from squeezing the others together."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    if finite and finite[-1] > 3 * finite[len(finite) // 2]:
        axes.set_ylim(top=2 * finite[len(finite) // 2])
