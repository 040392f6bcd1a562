"""A sweep before it begins: its trials, and what they will cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.run.progress import Reporter
from ggtune.setting_texts import EvalInterval, Holdout
from ggtune.sweep.sheet import Sheet, Trial
from ggtune.sweep.space import FREE, Axis, described, trial_name, trials
from ggtune.system import format_bytes
from ggtune.train.forecast import Forecast, forecast
from ggtune.train.halving import FACTOR, Rung, cost_s, hours, rungs

_Kind = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Prepared:
    """A sweep that nothing of is written yet, with what the user is told of it."""

    sheet: Sheet
    lines: tuple[str, ...]
    seconds: float | None  # about; None where it could not be predicted


def prepare(
    settings: Mapping[str, Any],
    axes: Sequence[Axis],
    *,
    n_trials: int | None = None,
    factor: int = FACTOR,
    reporter: Reporter | None = None,
) -> Prepared:
    """Choose the trials and predict them, those alike together. Raises :class:`GgtuneError` as a training would.

    ``settings`` are those that are given for all of them; what is not given has the default of ``train``.
    """
    reporter = reporter or Reporter()
    base = TrainConfig(**{**settings, **{axis.name: axis.values[0] if axis.values else axis.low for axis in axes}})
    holdout = Holdout.parse(base.holdout)
    if not holdout.value and not holdout.path:
        raise GgtuneError(
            "a sweep compares held-out losses, and --holdout is 0: give it a share or a number of samples"
        )
    chosen = trials(axes, n_trials, base.seed)
    if len(chosen) < 2:
        raise GgtuneError("a sweep needs two trials at least: give several values, as in --lr 1e-4,3e-4,1e-3")
    plain = base.to_dict()
    configs = [TrainConfig.from_dict({**plain, **changes}) for changes in chosen]  # what is wrong with any is said now
    found: dict[_Kind, Forecast | GgtuneError] = {}
    kinds: list[_Kind] = []
    for changes, config in zip(chosen, configs, strict=True):
        kind = tuple((name, value) for name, value in changes.items() if name not in FREE)
        if kind not in found:
            reporter.note(f"Predicting {described(dict(kind)) or 'a trial'} ...")
            found[kind] = _forecast(config)
        kinds.append(kind)
    forecasts = [found[kind] for kind in kinds]
    known = [one for one in forecasts if isinstance(one, Forecast)]
    if not known:
        raise next(one for one in forecasts if isinstance(one, GgtuneError))
    parts = rungs(len(chosen), min(one.total_steps or 0 for one in known), factor)  # all the way where none has an end
    rows = []
    for number, (changes, one) in enumerate(zip(chosen, forecasts, strict=True), 1):
        name = trial_name(number, len(chosen), changes)
        if isinstance(one, GgtuneError):
            reporter.note(f"warning: {name} will fail: {one}")
            rows.append(Trial(name, changes))
            continue
        every = "" if "eval_every" in settings or len(parts) == 1 else _eval_every(one, parts[0])
        rows.append(Trial(name, changes, one.total_steps, _seconds(one, every or base.eval_every), every))
    sheet = Sheet(plain, {axis.name: axis.text() for axis in axes}, tuple(rows), tuple(parts), str(Path.cwd()))
    seconds = [row.seconds for row in rows]
    costs = None if any(one is None for one in seconds) else cost_s([one for one in seconds if one is not None], parts)
    return Prepared(sheet, tuple(_lines(sheet, known, costs, datetime.now())), costs[1] if costs else None)


def _forecast(config: TrainConfig) -> Forecast | GgtuneError:
    try:
        return forecast(config)
    except GgtuneError as error:
        return error


def _eval_every(one: Forecast, first: Rung) -> str:
    """Return how often to measure: at the end of the first rung, and at least once an epoch, equally often."""
    assert one.total_steps is not None
    steps = math.ceil(first.share * one.total_steps)
    return str(math.ceil(steps / math.ceil(steps / one.steps_per_epoch)))


def _seconds(one: Forecast, eval_every: str) -> float | None:
    if one.seconds_per_step is None or one.total_steps is None:
        return None
    interval = EvalInterval.parse(eval_every)
    n_evaluations = 2 + interval.times(one.total_steps - 1, one.steps_per_epoch, one.seconds_per_step)
    return one.total_steps * one.seconds_per_step + n_evaluations * one.held_out_s


def _lines(
    sheet: Sheet, known: Sequence[Forecast], costs: tuple[float, float, float] | None, now: datetime
) -> list[str]:
    n, parts = len(sheet.trials), sheet.rungs
    lines = [
        f"Sweep: {n} trials over " + ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in sheet.axes.items())
    ]
    way = [f"all {n} take {_percent(parts[0])} of their steps"]
    way += [f"the best {part.n_trials} of these go on to {_percent(part)}" for part in parts[1:]]
    lines.append("Way: " + ("all to their end" if len(parts) == 1 else "; ".join(way)))
    memory, free = max(one.total_bytes for one in known), known[0].available_bytes
    fits = "" if memory <= free else ": NOT all fit, and those that don't will fail"
    lines.append(f"Memory: {format_bytes(memory)} at the most, {format_bytes(free)} are free{fits}")
    if costs is None:
        return [*lines, "Cost: not predicted"]
    low, about, high = costs
    span = f", {hours(low)} to {hours(high)}" if hours(low) != hours(high) else ""
    whole = sum(trial.seconds or 0.0 for trial in sheet.trials)
    beside = f"; all of them to their end would take {hours(whole)}" if len(parts) > 1 else ""
    end = now + timedelta(seconds=about)
    lines.append(f"Cost: about {hours(about)}{span}, started now it ends about {end:%Y-%m-%d %H:%M}{beside}")
    return lines


def _percent(part: Rung) -> str:
    return f"{100 * float(part.share):.0f} %"
