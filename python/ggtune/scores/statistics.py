"""How sure a mean is: bootstrap intervals, and tests of paired differences.

Everything is over samples that are drawn anew, never over tokens: the tokens of one answer are no independent draws.
A score may be any function of sums over the samples (a mean, corpus BLEU, perplexity): the sums are drawn anew then.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Sums over samples, shape ``(n_draws, n_columns)``, to a score of each draw, shape ``(n_draws,)``."""

LEVEL = 0.95
_SIGNIFICANT = 0.05
_RESAMPLES = 4000
_PERMUTATIONS = 10_000
_COUNTED_UP_TO = 16  # pairs that differ: all their exchanges are looked at
_AT_ONCE = 1 << 22  # numbers in one block of draws
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval; NaN where there is nothing to tell it from (an interval takes two samples)."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there were enough samples for one."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def half_width(self) -> float:
        """Half of the interval, for "0.12 ± 0.05"."""
        return (self.high - self.low) / 2

    def text(self, digits: int = 2) -> str:
        """``0.31 [0.22, 0.41]``."""
        if not math.isfinite(self.value):
            return "-"
        if not self.has_interval:
            return f"{self.value:.{digits}f} [?]"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def to_dict(self) -> dict[str, float | None]:
        """Plain values for JSON, which has no NaN."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Estimate":
        """Undo :meth:`to_dict`. Raises :class:`KeyError`, :class:`TypeError` or :class:`ValueError` for others."""
        return cls(**{n: math.nan if values[n] is None else float(values[n]) for n in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, second less first, with the p value of a two-sided permutation test."""

    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether chance alone gives such a difference in fewer than 5 of 100 cases."""
        return self.p_value < _SIGNIFICANT

    def text(self, digits: int = 2) -> str:
        """``+0.12 [0.07, 0.17], p = 0.003``."""
        if not math.isfinite(self.value):
            return "-"
        interval = f" [{self.low:+.{digits}f}, {self.high:+.{digits}f}]" if self.has_interval else " [?]"
        least = "p < 0.001" if self.p_value < 0.001 else f"p = {self.p_value:.3f}"
        return f"{self.value:+.{digits}f}{interval}, {least}"


def bootstrap_mean(
    values: Sequence[float] | Array,
    weights: Sequence[float] | Array | None = None,
    *,
    seed: int = 0,
    share: bool = False,
) -> Estimate:
    """Weighted mean of ``values`` over samples, with its interval (:func:`bootstrap_sums`).

    A loss per token is the mean of the samples' own losses per token, weighted by their tokens. ``share`` says that
    the values lie between 0 and 1: where all are at one of these ends no draw differs, and the interval is the exact
    one of a proportion (Clopper and Pearson 1934): 0 of 20 may well be 0.17.
    """
    found = np.asarray(values, np.float64)
    if share and weights is None and len(found) > 1 and (found == found[0]).all() and found[0] in (0.0, 1.0):
        reach = 1 - ((1 - LEVEL) / 2) ** (1 / len(found))
        return Estimate(0.0, 0.0, reach) if found[0] == 0 else Estimate(1.0, 1.0 - reach, 1.0)
    return bootstrap_sums(_mean_columns(found, weights), ratio, seed=seed)


def ratio(sums: Array) -> Array:
    """First column by second: the statistic of a weighted mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = sums[:, 0] / sums[:, 1]
    return found


def bootstrap_sums(columns: Array, statistic: Statistic, *, seed: int = 0) -> Estimate:
    """Interval of a function of sums over samples, ``columns`` of shape ``(n_samples, n_columns)``.

    Bias-corrected and accelerated bootstrap (Efron 1987, Better bootstrap confidence intervals), the acceleration by
    the jackknife. The same samples and seed give the same interval.
    """
    columns = np.asarray(columns, np.float64)
    n = len(columns)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(statistic(columns.sum(axis=0, keepdims=True))[0])
    if n == 1 or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    draws = np.concatenate([statistic(counts @ columns) for counts in _draws(n, seed)])
    return Estimate(value, *_interval(value, draws[np.isfinite(draws)], _left_out(columns, statistic)))


def paired_difference(
    first: Sequence[float] | Array,
    second: Sequence[float] | Array,
    weights: Sequence[float] | Array | None = None,
    *,
    seed: int = 0,
) -> Difference:
    """Difference of two weighted means over the same samples, ``second`` less ``first``, as :func:`paired_sums`."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return paired_sums(_mean_columns(a, weights), _mean_columns(b, weights), ratio, seed=seed)


def paired_sums(first: Array, second: Array, statistic: Statistic, *, seed: int = 0) -> Difference:
    """Difference of a score between two sets of sums over the same samples, ``second`` less ``first``.

    The interval is that of :func:`bootstrap_sums`, with both drawn together. The p value is that of exchanging the two
    within random samples (of a mean: flipping the signs of the differences; of corpus scores "approximate
    randomization", Noreen 1989): all exchanges of up to 16 pairs that differ, else 10,000 drawn ones, of which what was
    found counts as one (Phipson and Smyth 2010). Raises :class:`ValueError` for different samples.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs of different samples: {first.shape} and {second.shape}")
    width = first.shape[1] if first.ndim == 2 else 0

    def difference(sums: Array) -> Array:
        return statistic(sums[:, width:]) - statistic(sums[:, :width])

    found = bootstrap_sums(np.hstack([first, second]), difference, seed=seed) if len(first) else None
    if found is None or not math.isfinite(found.value):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    return Difference(**asdict(found), p_value=_p_value(first, second, statistic, found.value, seed))


def _p_value(first: Array, second: Array, statistic: Statistic, found: float, seed: int) -> float:
    differs = (first != second).any(axis=1)
    change = (second - first)[differs]
    n = len(change)
    a, b = first.sum(axis=0), second.sum(axis=0)
    least = abs(found) * (1 - 1e-9) - 1e-12  # sums in another order

    def n_as_far(exchanged: Array) -> int:
        moved = exchanged @ change
        return int(np.count_nonzero(np.abs(statistic(b - moved) - statistic(a + moved)) >= least))

    if n <= _COUNTED_UP_TO:
        every = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return n_as_far(every.astype(np.float64)) / float(2**n)
    rng = np.random.default_rng([seed, 1])
    n_far = 0
    for size in _blocks(_PERMUTATIONS, n):
        n_far += n_as_far(rng.integers(0, 2, (size, n)).astype(np.float64))
    return (1 + n_far) / (1 + _PERMUTATIONS)


def _mean_columns(values: Array, weights: Sequence[float] | Array | None) -> Array:
    weighed = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    return np.stack([values * weighed, weighed], axis=1) if len(values) else np.zeros((0, 2))


def _blocks(n_draws: int, n_samples: int) -> Iterator[int]:
    most = max(1, _AT_ONCE // max(1, n_samples))
    for begin in range(0, n_draws, most):
        yield min(most, n_draws - begin)


def _draws(n: int, seed: int) -> Iterator[Array]:
    """How often each of n samples is in a draw of n with replacement, blocks of shape ``(n_draws, n)``."""
    rng = np.random.default_rng([seed, 0])
    for size in _blocks(_RESAMPLES, n):
        chosen = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(chosen.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _left_out(columns: Array, statistic: Statistic) -> Array:
    """The score without each sample."""
    found = statistic(columns.sum(axis=0) - columns)
    return found[np.isfinite(found)]


def _interval(value: float, draws: Array, left_out: Array) -> tuple[float, float]:
    if len(draws) < _RESAMPLES // 2:
        return math.nan, math.nan
    tail = (1 - LEVEL) / 2
    below = float(np.mean(draws < value) + np.mean(draws == value) / 2)
    if not 0 < below < 1:  # nothing is drawn on one side
        low, high = np.quantile(draws, [tail, 1 - tail])
        return float(low), float(high)
    bias = _NORMAL.inv_cdf(below)
    away = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = float(np.sum(away**2))
    acceleration = float(np.sum(away**3)) / (6 * spread**1.5) if spread > 0 else 0.0
    ends = []
    for share in (tail, 1 - tail):
        z = bias + _NORMAL.inv_cdf(share)
        ends.append(_NORMAL.cdf(bias + z / max(1e-3, 1 - acceleration * z)))
    low, high = np.quantile(draws, ends)
    return float(low), float(high)
