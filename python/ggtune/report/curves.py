"""Series of a run's metrics as they are drawn: thinned with every spike kept, on an axis that a spike can't spoil."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Records = Sequence[Mapping[str, Any]]  # as in metrics.jsonl

_TYPICAL = 0.98  # share of the values that an axis shows at least
_END_SHARE = 0.02  # of a curve at both ends, which an axis shows, too
_SPIKY = 4.0  # so many times the range of the typical values is too much for one axis
_LOG_RATIO = 100.0  # of the highest to the lowest, from which on an axis is logarithmic
_MARGIN = 0.06
_LARGEST = 1 << 1000  # integer that is taken for a number


@dataclass(frozen=True)
class Points:
    """Steps (or epochs) and values, both of shape ``(n,)``; a value that is missing is NaN."""

    x: FloatArray
    y: FloatArray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def finite(self) -> Points:
        """Those with a value."""
        there = np.isfinite(self.y)
        return Points(self.x[there], self.y[there])


def number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number, None where there is none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def column(records: Records, key: str) -> FloatArray:
    """Return a field of every record, shape ``(n,)``; what is no finite number is NaN."""
    plain = (float, int)  # no bool
    values = [value if type(value := record.get(key)) in plain else math.nan for record in records]
    try:
        found = np.array(values, np.float64)
    except OverflowError:  # an integer of hundreds of digits
        found = np.array([math.nan if type(v) is int and abs(v) > _LARGEST else v for v in values], np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def points(records: Records, key: str, x: str = "step") -> Points:
    """Take one series out of the records; a record without the value is NaN."""
    at, values = column(records, x), column(records, key)
    there = np.isfinite(at)
    return Points(at[there], values[there])


def held_out_points(records: Records, x: str = "step") -> Points:
    """Take the held-out losses that were measured, that before the training at 0."""
    measured = points(records, "held_out_loss", x).finite
    before = number(records[0], "held_out_before") if records else None
    if before is None:
        return measured
    return Points(np.r_[0.0, measured.x], np.r_[before, measured.y])


def scores_of(records: Records) -> list[str]:
    """Names of the scores that were measured while training."""
    measured = [r["held_out_scores"] for r in records if isinstance(r.get("held_out_scores"), Mapping)]
    return sorted({str(name) for scores in measured for name in scores})


def score_points(records: Records, name: str, x: str = "step") -> Points:
    """Take one of these scores out of the records."""
    rows = []
    for record in records:
        scores, at = record.get("held_out_scores"), number(record, x)
        if isinstance(scores, Mapping) and at is not None and (value := number(scores, name)) is not None:
            rows.append((at, value))
    return Points(np.array([at for at, _ in rows], np.float64), np.array([value for _, value in rows], np.float64))


def thinned(curve: Points, n_buckets: int) -> Points:
    """Keep the first, the last, the lowest and the highest value of each of ``n_buckets`` stretches.

    A stretch without any value stays a gap. A curve that has no more than four points a bucket stays as it is.
    """
    if len(curve) <= 4 * n_buckets:
        return curve
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(curve)), n_buckets):
        there = stretch[np.isfinite(curve.y[stretch])]
        if not len(there):
            kept.append(int(stretch[0]))
            continue
        values = curve.y[there]
        chosen = {there[0], there[int(np.argmin(values))], there[int(np.argmax(values))], there[-1]}
        kept += sorted(int(i) for i in chosen)
    return Points(curve.x[kept], curve.y[kept])


def typical_range(curves: Sequence[Points]) -> tuple[float, float]:
    """Lowest and highest value that an axis has to show: all but a few in the middle of a curve."""
    lows, highs = [], []
    for curve in curves:
        values = curve.finite.y
        if not len(values):
            continue
        n_end = max(1, int(_END_SHARE * len(values)))
        ends = [np.median(values[:n_end]), np.median(values[-n_end:])]
        lows.append(min(values.min(), *ends))
        highs.append(max(np.quantile(values, _TYPICAL), values[0], values[-1], *ends))
    return (float(min(lows)), float(max(highs))) if lows else (0.0, 1.0)


@dataclass(frozen=True)
class Axis:
    """What an axis shows. ``clipped``: something lies above ``high``."""

    low: float
    high: float
    log: bool
    clipped: bool

    def above(self, curve: Points) -> Points:
        """The values of a curve that lie above the axis."""
        over = np.isfinite(curve.y) & (curve.y > self.high)
        return Points(curve.x[over], curve.y[over])


def axis_of(curves: Sequence[Points], *, from_zero: bool = False) -> Axis:
    """Choose the limits for some curves: a spike is left outside where it would flatten all else."""
    low, high = typical_range(curves)
    highest = max((float(c.finite.y.max()) for c in curves if len(c.finite)), default=high)
    if from_zero:
        return Axis(0.0, (highest or 1.0) * (1 + _MARGIN), log=False, clipped=False)
    clipped = highest - low > _SPIKY * (high - low) and high > low
    if clipped:  # what is no more than twice as far as the typical ones has its place
        most = low + 2 * (high - low)
        high = max(high, *(float(c.y[c.y <= most].max(initial=high)) for c in curves))
    else:
        high = highest
    if low <= 0 or high / low > _LOG_RATIO:  # a single value near 0 is no reason
        values = np.concatenate([c.finite.y for c in curves])
        low = max(low, float(np.quantile(values[values > 0], 1 - _TYPICAL))) if high > 0 else low
    if low > 0 and high / low > _LOG_RATIO:
        ratio = (high / low) ** _MARGIN
        return Axis(low / ratio, high * ratio, log=True, clipped=clipped)
    margin = _MARGIN * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, log=False, clipped=clipped)
