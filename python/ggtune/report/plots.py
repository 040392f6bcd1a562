"""Figures of training runs: pure functions of what ``metrics.jsonl`` holds, to SVG for a page or to PNG.

Each takes ``runs``, the records of one or more runs by their names, and returns a :class:`Plot`, or None where nothing
of it was recorded. Matplotlib (the extra ``report``) is loaded when one is drawn.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ggtune.report.curves import (
    Axis,
    Points,
    Records,
    axis_of,
    held_out_points,
    number,
    points,
    score_points,
    scores_of,
    thinned,
)
from ggtune.report.svg import embedded
from ggtune.report.texts import shown_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Runs = Mapping[str, Records]

INK, GRID = "#30363d", "#d8dde3"
SERIES = ("#0b62b0", "#b85c00", "#1a7f4b", "#8247c9", "#c4314b", "#007d8a", "#7a5230", "#5b6470")
_DARK_INK, _DARK_GRID = "#dde3ea", "#3a424b"
_DARK_SERIES = ("#6cb2ff", "#ffa94d", "#5fd38d", "#c4a1ff", "#ff8095", "#4fd0dc", "#d0a878", "#b4bcc6")
_NAMES = ("--plot-ink", "--plot-grid", *(f"--plot-{i + 1}" for i in range(len(SERIES))))
_VARIABLES = dict(zip((INK, GRID, *SERIES), _NAMES, strict=True))
LIGHT_CSS = " ".join(f"{name}: {colour};" for colour, name in _VARIABLES.items())
"""CSS variables that a page sets for its plots, and those for a dark page."""
DARK_CSS = " ".join(
    f"{name}: {colour};" for name, colour in zip(_NAMES, (_DARK_INK, _DARK_GRID, *_DARK_SERIES), strict=True)
)

_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
_BUCKETS = 500  # of all curves of a figure together
_LEAST_BUCKETS = 20
_MOST_MARKS = 150
_LEGEND_NAMES = 12
_FEW_DECADES = 2e3  # a logarithmic axis that is shorter has ticks between the powers of ten
_PNG_SCALE = 2
_DRAWING = threading.Lock()  # matplotlib's settings are the process's


class Forecaster(Protocol):
    """A curve fitted to held-out losses (:mod:`ggtune.train.curve`)."""

    def predict(self, step: float) -> Any:
        """Return an estimate with ``value``, ``low`` and ``high``."""


@dataclass(frozen=True)
class Plot:
    """A figure that can be drawn in any size. ``description`` says in words what it shows."""

    key: str
    title: str
    description: str
    draw: Callable[[Axes], None]

    def svg(self, width: int = 720, height: int = 320, *, name: str = "") -> str:
        """Return an ``<svg>`` element; ``name`` (by default the key) is the only one of its kind in a page."""
        buffer = io.StringIO()
        with _drawing():
            self._figure(width, height).savefig(buffer, format="svg", metadata={"Date": None})
        return embedded(buffer.getvalue(), name or self.key, self.title, self.description, _VARIABLES)

    def png(self, width: int = 720, height: int = 320) -> bytes:
        """Return the bytes of a PNG, on white, with twice as many pixels."""
        buffer = io.BytesIO()
        with _drawing():
            figure = self._figure(width, height)
            figure.axes[0].set_title(self.title, fontsize=13)
            figure.savefig(
                buffer,
                format="png",
                dpi=72 * _PNG_SCALE,
                facecolor="white",
                metadata={"Software": PNG_SOFTWARE, "Description": self.description},
            )
        return buffer.getvalue()

    def _figure(self, width: int, height: int) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
        figure.patch.set_alpha(0.0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0.0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("bottom", "left"):
            axes.spines[side].set_color(GRID)
        axes.tick_params(color=GRID, labelcolor=INK, labelsize=11)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        self.draw(axes)
        return figure


PNG_SOFTWARE = "ggtune report"


class _drawing:  # noqa: N801  used like a function
    """Matplotlib's settings for our figures, for one thread at a time."""

    def __enter__(self) -> None:
        from ggtune.extras import need

        matplotlib = need("matplotlib", "report", "drawing the figures of a run")
        _DRAWING.acquire()
        try:
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            warnings.filterwarnings("ignore", message=r"Glyph \d+")  # SVG takes the page's fonts
            self._settings = matplotlib.rc_context(
                {
                    "svg.fonttype": "none",
                    "svg.hashsalt": "ggtune",
                    "text.color": INK,
                    "axes.labelcolor": INK,
                    "axes.formatter.useoffset": False,
                    "font.size": 12,
                    "text.parse_math": False,
                    "path.simplify": False,
                }
            )
            self._settings.__enter__()
        except BaseException:
            _DRAWING.release()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            self._settings.__exit__(*error)
            self._warnings.__exit__(*error)
        finally:
            _DRAWING.release()


def all_figures(runs: Runs, *, fit: Forecaster | None = None, fit_to: int | None = None) -> list[Plot]:
    """Return every figure for which something was recorded, that of the loss first."""
    found = [
        loss_figure(runs, fit=fit, fit_to=fit_to),
        *score_figures(runs),
        rate_figure(runs),
        gradient_figure(runs),
        speed_figure(runs),
        memory_figure(runs),
    ]
    return [plot for plot in found if plot is not None]


def loss_figure(runs: Runs, *, fit: Forecaster | None = None, fit_to: int | None = None) -> Plot | None:
    """Training loss, smoothed, and held-out loss; of a single run with the curve fitted to that, to step ``fit_to``."""
    x = _x_of(runs)
    raw = {name: points(records, "loss", x) for name, records in runs.items()}
    smoothed = {name: points(records, "smoothed_loss", x) for name, records in runs.items()}
    held_out = {name: held_out_points(records, x) for name, records in runs.items()}
    if not any(len(curve.finite) for curve in (*raw.values(), *held_out.values())):
        return None
    single = len(runs) == 1
    shown = [*(raw if single else smoothed).values(), *held_out.values()]
    axis = axis_of([curve for curve in shown if len(curve)])
    dropped = {name: _dropped(records, x) for name, records in runs.items()}
    n_buckets = max(_LEAST_BUCKETS, _BUCKETS // max(1, len(runs)))

    def draw(axes: Axes) -> None:
        entries = _Legend(axes)
        for i, name in enumerate(runs):
            colour, dash = SERIES[i % len(SERIES)], _DASHES[i // len(SERIES) % len(_DASHES)]
            if single:
                curve = thinned(raw[name], n_buckets)
                line = axes.plot(curve.x, curve.y, color=colour, linewidth=0.8, alpha=0.45, marker=_mark(curve))
                entries.add(line[0], "training loss of each step")
            curve = thinned(smoothed[name], n_buckets)
            line = axes.plot(curve.x, curve.y, color=colour, linewidth=1.8, linestyle=dash, marker=_mark(curve))
            entries.add(line[0], "smoothed" if single else name)
            _draw_held_out(axes, entries, held_out[name], SERIES[1] if single else colour, single=single)
            _draw_outside(axes, axis, raw[name] if single else smoothed[name], colour)
            _draw_dropped(axes, dropped[name])
        if not single:
            entries.add(axes.plot([], [], color=INK, linewidth=1.8)[0], "training, smoothed")
            entries.add(axes.plot([], [], color=INK, linewidth=1.4, marker="o", linestyle=":")[0], "held-out")
        if single and fit is not None and fit_to is not None and x == "step":
            _draw_fit(axes, entries, fit, next(iter(held_out.values())), fit_to)
        _finish(axes, axis, "loss (nats per token)", x)
        entries.draw()

    return Plot("loss", "Loss", _describe_loss(runs, raw, smoothed, held_out, dropped, axis, x), draw)


def rate_figure(runs: Runs) -> Plot | None:
    """Learning rate."""
    return _line_figure(runs, "lr", "rate", "Learning rate", "learning rate", from_zero=True)


def gradient_figure(runs: Runs) -> Plot | None:
    """Norm of the gradient, before it is clipped."""
    return _line_figure(runs, "grad_norm", "gradient", "Gradient norm", "norm of the gradient")


def speed_figure(runs: Runs) -> Plot | None:
    """Tokens per second of each step."""
    return _line_figure(runs, "tokens_per_second", "speed", "Speed", "tokens per second", from_zero=True)


def memory_figure(runs: Runs) -> Plot | None:
    """Memory of the process after each step."""
    return _line_figure(runs, "memory_bytes", "memory", "Memory", "memory (GiB)", unit=1 << 30, from_zero=True)


def score_figures(runs: Runs) -> list[Plot]:
    """Scores that were measured while training, each by its name."""
    x = _x_of(runs)
    names = sorted({name for records in runs.values() for name in scores_of(records)})
    plots = []
    for i, name in enumerate(names):
        curves = {run: score_points(records, name, x) for run, records in runs.items()}
        title = shown_text(name.replace("_", " "), 40)
        plots.append(_plot_of(curves, f"score-{i + 1}", f"Held-out {title}", title, x, marked=True))
    return plots


def lengths_figure(lengths: Any, context: Any = None) -> Plot | None:
    """Lengths of the samples: ``edges`` in tokens and ``counts`` between them, as ``data_card.json`` has them."""
    try:
        edges, counts = np.array(lengths["edges"], np.float64), np.array(lengths["counts"], np.float64)
    except (TypeError, KeyError, ValueError):
        return None
    if counts.ndim != 1 or edges.shape != (len(counts) + 1,) or not counts.sum() > 0 or not np.isfinite(edges).all():
        return None

    def draw(axes: Axes) -> None:
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=SERIES[0], alpha=0.75, linewidth=0)
        if isinstance(context, int) and edges[0] < context < 2 * edges[-1]:
            axes.axvline(context, color=SERIES[1], linestyle="--", linewidth=1.4)
            axes.text(
                context, 0.97, " context", color=SERIES[1], fontsize=11, va="top", transform=axes.get_xaxis_transform()
            )
        axes.set_xlabel("tokens", fontsize=11)
        axes.set_ylabel("samples", fontsize=11)

    most = int(np.argmax(counts))
    text = f"{counts.sum():,.0f} samples of {edges[0]:,.0f} to {edges[-1] - 1:,.0f} tokens, most of them of about "
    return Plot("lengths", "Lengths of the samples", f"{text}{edges[most]:,.0f} to {edges[most + 1]:,.0f}.", draw)


def _line_figure(
    runs: Runs, field: str, key: str, title: str, label: str, *, unit: float = 1.0, from_zero: bool = False
) -> Plot | None:
    x = _x_of(runs)
    curves = {name: points(records, field, x) for name, records in runs.items()}
    curves = {name: Points(curve.x, curve.y / unit) for name, curve in curves.items()}
    if not any(len(curve.finite) for curve in curves.values()):
        return None
    return _plot_of(curves, key, title, label, x, from_zero=from_zero)


def _plot_of(
    curves: Mapping[str, Points],
    key: str,
    title: str,
    label: str,
    x: str,
    *,
    from_zero: bool = False,
    marked: bool = False,
) -> Plot:
    axis = axis_of(list(curves.values()), from_zero=from_zero)
    n_buckets = max(_LEAST_BUCKETS, _BUCKETS // 2 // max(1, len(curves)))

    def draw(axes: Axes) -> None:
        entries = _Legend(axes)
        for i, (name, curve) in enumerate(curves.items()):
            colour, dash = SERIES[i % len(SERIES)], _DASHES[i // len(SERIES) % len(_DASHES)]
            shown = thinned(curve.finite if marked else curve, n_buckets)
            marker = "o" if marked and len(shown) <= _MOST_MARKS else _mark(shown)
            line = axes.plot(shown.x, shown.y, color=colour, linewidth=1.4, linestyle=dash, marker=marker, markersize=4)
            _draw_outside(axes, axis, curve, colour)
            if len(curves) > 1:
                entries.add(line[0], name)
        _finish(axes, axis, label, x)
        entries.draw()

    described = [_describe(name, curve, axis, x) for name, curve in curves.items() if len(curve.finite)]
    return Plot(key, title, f"{title} over the {x}s. " + " ".join(described), draw)


class _Legend:
    """Lines with their names, as plain text."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._handles: list[Any] = []
        self._names: list[str] = []

    def add(self, handle: Any, name: str) -> None:
        self._handles.append(handle)
        shown = " ".join(shown_text(name, 60).split())
        self._names.append(f" {shown}" if shown.startswith("_") else shown)  # matplotlib leaves those out

    def draw(self) -> None:
        if not self._handles or len(self._handles) > 2 * _LEGEND_NAMES:
            return
        width = _width(self._axes)
        longest = max(map(len, self._names))
        columns = max(1, min(len(self._names), int(width / (40 + 6.5 * longest))))
        legend = self._axes.figure.legend(
            self._handles,
            self._names,
            loc="outside upper left",
            ncols=columns,
            fontsize=11,
            frameon=False,
            borderaxespad=0.2,
            handlelength=1.6,
            columnspacing=1.2,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)


def _width(axes: Axes) -> float:
    """Return the width of the figure in pixels."""
    return float(axes.figure.bbox.width)


def _x_of(runs: Runs) -> str:
    """Steps; epochs where the runs have steps of different size."""
    sizes = set()
    for records in runs.values():
        last = next((r for r in reversed(records) if (number(r, "epoch") or 0) > 0), None)
        if last is not None:
            sizes.add(round(float(last["step"]) / float(last["epoch"]), 2))
    return "epoch" if len(sizes) > 1 and max(sizes) > 1.05 * min(sizes) else "step"


def _dropped(records: Records, x: str) -> list[float]:
    return [at for record in records if "dropped" in record if (at := number(record, x)) is not None]


def _mark(curve: Points) -> str:
    """A point alone has no line that could be seen."""
    return "o" if len(curve.finite) < 3 else ""


def _draw_held_out(axes: Axes, entries: _Legend, curve: Points, colour: str, *, single: bool) -> None:
    if not len(curve):
        return
    shown = thinned(curve, _BUCKETS // 4)
    marker = "o" if len(shown) <= _MOST_MARKS else ""
    line = axes.plot(shown.x, shown.y, color=colour, linewidth=1.4, marker=marker, markersize=4, linestyle=":")
    if single:
        entries.add(line[0], "held-out")
    if single and len(curve) > 1:
        best = int(np.argmin(curve.y))
        ring = axes.plot(
            curve.x[best], curve.y[best], "o", markersize=9, markerfacecolor="none", color=colour, linestyle="none"
        )
        entries.add(ring[0], "best held-out")


def _draw_fit(axes: Axes, entries: _Legend, fit: Forecaster, held_out: Points, to: int) -> None:
    if not len(held_out) or to <= held_out.x[0]:
        return
    steps = np.linspace(float(held_out.x[0]), float(to), 60)
    estimates = [fit.predict(float(step)) for step in steps]
    colour = SERIES[2]
    line = axes.plot(steps, [e.value for e in estimates], color=colour, linewidth=1.2, linestyle=_DASHES[1])
    axes.fill_between(
        steps, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.13, linewidth=0
    )
    entries.add(line[0], "fitted to held-out, with its range")


def _draw_outside(axes: Axes, axis: Axis, curve: Points, colour: str) -> None:
    """Put triangles at the upper edge for what lies above it."""
    outside = axis.above(curve)
    if not len(outside):
        return
    chosen = outside.x[np.unique(np.linspace(0, len(outside) - 1, min(len(outside), _MOST_MARKS)).astype(int))]
    edge = axes.get_xaxis_transform()  # steps along, a share of the height upwards
    axes.plot(chosen, np.full(len(chosen), 0.985), "^", color=colour, markersize=6, transform=edge, clip_on=False)


def _draw_dropped(axes: Axes, steps: Sequence[float]) -> None:
    if not steps:
        return
    chosen = np.array(steps)[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _MOST_MARKS)).astype(int))]
    edge = axes.get_xaxis_transform()
    axes.plot(chosen, np.full(len(chosen), 0.02), "x", color=SERIES[4], markersize=6, transform=edge, clip_on=False)


def _finish(axes: Axes, axis: Axis, label: str, x: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if axis.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis.high / axis.low < _FEW_DECADES else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(axis.low, axis.high)
    axes.set_ylabel(label, fontsize=11)
    axes.set_xlabel(x, fontsize=11)
    narrow = _width(axes) < 500
    axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 9, integer=x == "step"))
    axes.margins(x=0.02)


def _describe_loss(
    runs: Runs,
    raw: Mapping[str, Points],
    smoothed: Mapping[str, Points],
    held_out: Mapping[str, Points],
    dropped: Mapping[str, Sequence[float]],
    axis: Axis,
    x: str,
) -> str:
    parts = []
    for name in runs:
        who = f"{shown_text(name, 60)}: " if len(runs) > 1 else ""
        first, last = raw[name].finite, smoothed[name].finite
        if len(first):
            end = f", {last.y[-1]:.4g} at the end (smoothed)" if len(last) else ""
            parts.append(f"{who}training loss {first.y[0]:.4g} at the start{end}, {len(raw[name])} steps.")
        else:
            parts.append(f"{who}no training loss was recorded.")
        curve = held_out[name]
        if len(curve):
            best = int(np.argmin(curve.y))
            parts.append(
                f"Held-out loss, measured {len(curve)} times: {curve.y[0]:.4g} first, {curve.y[best]:.4g} at its best "
                f"({x} {curve.x[best]:.6g}), {curve.y[-1]:.4g} last."
            )
        if dropped[name]:
            n = len(dropped[name])
            parts.append(f"{n} step{'s were' if n > 1 else ' was'} dropped: the crosses below.")
        parts += _outside_text(axis, raw[name] if len(runs) == 1 else smoothed[name], x)
    if axis.log:
        parts.append("The axis of the loss is logarithmic.")
    return " ".join(parts)


def _describe(name: str, curve: Points, axis: Axis, x: str) -> str:
    values = curve.finite.y
    who = f"{shown_text(name, 60)}: " if name else ""
    text = f"{who}{values[0]:.4g} first, {values[-1]:.4g} last, {values.min():.4g} to {values.max():.4g}."
    return " ".join([text, *_outside_text(axis, curve, x)])


def _outside_text(axis: Axis, curve: Points, x: str) -> list[str]:
    outside = axis.above(curve)
    if not len(outside):
        return []
    highest = int(np.argmax(outside.y))
    n = f"{len(outside)} value{'s lie' if len(outside) > 1 else ' lies'}"
    peak = f"{outside.y[highest]:.4g} at {x} {outside.x[highest]:.6g}"
    return [f"{n} above the axis, marked by triangles: the highest is {peak}."]
