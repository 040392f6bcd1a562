"""Figures and sentences about one run: what a table of runs has in a column."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ggtune.config import TrainConfig, flag
from ggtune.errors import GgtuneError
from ggtune.report.curves import column, number, points
from ggtune.report.reading import RunRecord
from ggtune.run.progress import format_duration
from ggtune.run.status import FINISHED
from ggtune.setting import setting_of
from ggtune.system import format_bytes

UNKNOWN = "–"
_INPUTS = ("model", "data")  # settings without a default


def values_of(run: RunRecord, key: str) -> list[float]:
    """Every finite value of a field of the metrics, in order."""
    values = column(run.metrics, key)
    return [float(value) for value in values[np.isfinite(values)]]


def held_out_before(run: RunRecord) -> float | None:
    """Return the held-out loss before the training, where the folder has it."""
    return number(run.metrics[0], "held_out_before") if run.metrics else None


def best_held_out(run: RunRecord) -> tuple[int, float] | None:
    """Return step and value of the best held-out loss that was measured."""
    curve = points(run.metrics, "held_out_loss").finite
    if not len(curve):
        return None
    best = int(np.argmin(curve.y))
    return int(curve.x[best]), float(curve.y[best])


def main_numbers(run: RunRecord) -> dict[str, str]:
    """Return what a reader wants to know first, by its title; a fact that is not known is "–"."""
    status, last = run.status, run.metrics[-1] if run.metrics else {}
    of = f" of {status.total_steps}" if status.total_steps else ""
    losses, smoothed, held_out = (values_of(run, key) for key in ("loss", "smoothed_loss", "held_out_loss"))
    before, best = held_out_before(run), best_held_out(run)
    speeds, memory = values_of(run, "tokens_per_second"), values_of(run, "memory_bytes")
    n_dropped = sum("dropped" in record for record in run.metrics)
    evaluation_s = sum(values_of(run, "eval_s")) + sum(values_of(run, "sample_s"))
    # a record's time is that of its step, before what was measured after it
    elapsed_s = status.elapsed_s + (number(last, "eval_s") or 0.0) + (number(last, "sample_s") or 0.0)
    tokens = sum(values_of(run, "n_tokens"))
    return {
        "State": f"{status.state}: {status.reason}" if status.reason and status.state == FINISHED else status.state,
        "Base model": Path(run.setting("model")).name or UNKNOWN,
        "Data": Path(run.setting("data")).name or UNKNOWN,
        "Steps": f"{status.step:,}{of}, {status.epoch:.2f} epochs",
        "Dropped steps": f"{n_dropped:,}",
        "Training loss": f"{losses[0]:.4f} → {smoothed[-1]:.4f} (smoothed)" if losses and smoothed else UNKNOWN,
        "Held-out loss before": UNKNOWN if before is None else f"{before:.4f}",
        "Best held-out loss": UNKNOWN if best is None else f"{best[1]:.4f} at step {best[0]:,}",
        "Last held-out loss": f"{held_out[-1]:.4f}" if held_out else UNKNOWN,
        "Time of training": format_duration(elapsed_s) if last else UNKNOWN,
        "… of it evaluation and samples": format_duration(evaluation_s) if evaluation_s else UNKNOWN,
        "Tokens trained on": f"{tokens:,.0f}" if tokens else UNKNOWN,
        "Tokens per second": f"{np.median(speeds):,.0f} (median)" if speeds else UNKNOWN,
        "Most memory": format_bytes(int(max(memory))) if memory else UNKNOWN,
        "ggtune": str(run.written.get("version") or UNKNOWN),
        "Last written": _time(run),
    }


def _time(run: RunRecord) -> str:
    written = number(run.written, "written")
    try:
        return UNKNOWN if written is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(written))
    except (OverflowError, OSError, ValueError):
        return UNKNOWN


def default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run without options would have had; open ones as the run's own kind settles them."""
    until_loss = settings.get("epochs") is None and bool(settings.get("stop_loss")) and not settings.get("max_steps")
    try:
        base = TrainConfig(model="-", data="-", stop_loss=float(settings["stop_loss"]) if until_loss else 0.0)
    except (GgtuneError, TypeError, ValueError):
        base = TrainConfig(model="-", data="-")
    return {**base.to_dict(), **dict.fromkeys((*_INPUTS, *(("stop_loss",) if until_loss else ())))}


def setting_rows(settings: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]]]:
    """Return name, value and help of each setting: those that differ from the defaults, and the others."""
    usual = default_settings(settings)
    helps = {f.name: setting_of(f).help for f in fields(TrainConfig)}
    changed: list[list[str]] = []
    same: list[list[str]] = []
    for name, value in settings.items():
        if name in usual and _plain(value) == _plain(usual[name]):
            same.append([flag(name), setting_text(value), helps.get(name, "")])
        else:
            changed.append([flag(name), setting_text(value), helps.get(name, "of another version of ggtune")])
    return changed, same


def differing_settings(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Return name and values of the settings that are not the same in all runs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [run.settings.get(name) for run in runs]
        if any(_plain(value) != _plain(values[0]) for value in values):
            rows.append([flag(name), *map(setting_text, values)])
    return rows


def setting_text(value: Any) -> str:
    """Show the value of a setting."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_text, value)) or UNKNOWN
    return str(value) if value != "" else UNKNOWN


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def loss_rows(metrics: Sequence[Mapping[str, Any]], n_rows: int = 12, most_rows: int = 24) -> list[list[str]]:
    """Rows of step, epoch, loss, smoothed, held-out: at even distances, the first, the last and those evaluated."""
    evaluated = [i for i, record in enumerate(metrics) if number(record, "held_out_loss") is not None]
    chosen = sorted({*_evenly(range(len(metrics)), n_rows), *_evenly(evaluated, most_rows - n_rows)})
    rows = []
    for i in chosen:
        record = metrics[i]
        losses = [_digits(number(record, key), 4) for key in ("loss", "smoothed_loss", "held_out_loss")]
        rows.append([str(record["step"]), _digits(number(record, "epoch"), 2), *losses])
    return rows


LOSS_HEAD = ("step", "epoch", "loss", "smoothed", "held-out")


def _evenly(indices: Sequence[int], n: int) -> list[int]:
    """Choose at most ``n``, the first and the last among them."""
    if len(indices) <= n:
        return list(indices)
    return [indices[round(i * (len(indices) - 1) / (n - 1))] for i in range(n)]


def _digits(value: float | None, n: int) -> str:
    return "" if value is None else f"{value:.{n}f}"


def share_text(value: Any) -> str:
    """Show a share as a percentage."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return UNKNOWN
    return f"{100 * value:.0f} %"
