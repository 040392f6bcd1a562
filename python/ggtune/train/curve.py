"""The held-out loss against the steps: a curve fitted with its uncertainty, and what it says of going on.

The logarithm of the loss is taken for a floor, a fall towards it, and a rise that may set in (learning by heart):

    log L(s) = a + b (1 + s / r)^-c + u t^2 / (k + t) + w(s) + noise,   t = max(0, s - m)

The fall is a power law (as of learning curves, Hestness et al. 2017, arXiv:1712.00409), for a large c an exponential.
``w`` is a random walk: the curve may leave its form, the further ahead the more. The posterior over all of it is
sampled: a, b and the noise by their own distributions given the rest, the rest by importance sampling that is adapted
to it (population Monte Carlo, Cappé et al. 2004). The same figures give the same answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggtune.scores.statistics import LEVEL, Estimate

Array = NDArray[np.float64]

LEAST_POINTS = 3  # measurements to fit
_MOST_POINTS = 40
_DRAWS, _ROUNDS = 4000, 3
_NOISE, _NOISE_WEIGHT = 0.004, 2.0  # of a measurement, as a share of the loss, and so many points that say so
_LEAST_SIZE = 0.02  # of the changes of a logarithm
_WALKS = (0.0, 1.0, 4.0, 16.0)  # variance of the walk over the steps so far, in noise variances


@dataclass(frozen=True)
class CurveFit:
    """Samples of the posterior, each array of shape ``(n_samples,)``; ``s`` is in units of ``unit`` steps."""

    unit: float  # the last step that was measured
    level: Array  # a
    fall: Array  # b
    scale: Array  # r
    power: Array  # c
    rise: Array  # u
    turn: Array  # m
    knee: Array  # k
    now: Array  # the walk at the last step
    noise: Array  # standard deviation of a measurement
    drift: Array  # standard deviation of the walk over ``unit`` steps

    def predict(self, step: float) -> Estimate:
        """What a measurement after ``step`` will give, and the interval it falls into in 95 of 100 cases."""
        rng = np.random.default_rng(2)
        return _estimate(self._loss(step) * np.exp(self.noise * rng.standard_normal(len(self.noise))))

    def gain(self, step: float, until: float) -> Estimate:
        """By how much the loss gets lower from ``step`` to ``until``; below 0 where it rises."""
        return _estimate(self._loss(step) - self._loss(until))

    def gain_over(self, best: float, step: float, until: float) -> Estimate:
        """By how much the best loss from ``step`` to ``until`` is under ``best``, 0 where none is: the best is kept."""
        ahead = np.stack([self._loss(s) for s in np.linspace(step, until, 9)[1:]])
        return _estimate(np.maximum(0.0, best - ahead.min(axis=0)))

    def _loss(self, step: float) -> Array:
        s = step / self.unit
        ahead = max(0.0, s - 1.0)
        rng = np.random.default_rng(1)  # the same walk for every step
        walk = self.now + self.drift * math.sqrt(ahead) * rng.standard_normal(len(self.now))
        form = self.level + self.fall * _power(s, self.scale, self.power)
        form += self.rise * _rising(s - self.turn, self.knee)
        return np.exp(form + walk)


def fit_curve(steps: Sequence[float], losses: Sequence[float]) -> CurveFit | None:
    """Fit the losses measured after ``steps``; None where fewer than three of them are there and finite.

    Step 0, before the training, may be among them.
    """
    points = {float(s): float(v) for s, v in zip(steps, losses, strict=True) if math.isfinite(v) and v > 0 and s >= 0}
    if len(points) < LEAST_POINTS or max(points) <= 0:
        return None
    s, y = np.array(sorted(points)), np.log([points[step] for step in sorted(points)])
    if len(s) > _MOST_POINTS:
        kept = np.unique(np.linspace(0, len(s) - 1, _MOST_POINTS).round().astype(int))
        s, y = s[kept], y[kept]
    unit = float(s[-1])
    return _Posterior(s / unit, y).sample(unit)


def _power(s: "Array | float", scale: Array, power: Array) -> Array:
    """``(1 + s / scale)^-power``."""
    found: Array = np.exp(-power * np.log1p(s / scale))
    return found


def _rising(since: Array, knee: Array) -> Array:
    """0 before the turn, and then a slope that sets in: ``t^2 / (k + t)``."""
    t = np.maximum(0.0, since)
    found: Array = t * t / (knee + t)
    return found


class _Posterior:
    """Of the shape: log r, log c, log u, log m, log k, as standard normal variables, and which walk.

    Of u the prior goes by the size of the changes that were seen: learning by heart is slower than learning.
    """

    # median of each, and the factor that a standard deviation is
    _PRIOR = np.log([[0.3, 3.3], [1.0, 2.2], [0.2, 2.0], [1.5, 2.2], [0.3, 3.3]])

    def __init__(self, s: Array, y: Array) -> None:
        self._s, self._y = s, y
        self._size = max(float(np.ptp(y)), _LEAST_SIZE)
        self._whiten = []
        for walk in _WALKS:
            covariance = np.eye(len(s)) + walk * np.minimum.outer(s, s)
            root = np.linalg.cholesky(covariance)
            self._whiten.append((np.linalg.inv(root), float(np.log(np.diag(root)).sum())))

    def sample(self, unit: float) -> CurveFit:
        rng = np.random.default_rng(0)
        z = rng.standard_normal((_DRAWS, len(self._PRIOR)))
        log_proposal = -0.5 * (z**2).sum(axis=1)
        for _ in range(_ROUNDS):
            walks = rng.integers(0, len(_WALKS), _DRAWS)
            fits = self._fits(z, walks)
            weights = fits.log_likelihood - 0.5 * (z**2).sum(axis=1) - log_proposal
            weights = np.exp(weights - weights.max())
            weights /= weights.sum()
            last = z, walks, fits, weights
            # the next ones around those that fit, wider than they lie; some from everywhere
            mean = weights @ z
            spread = np.cov(z.T, aweights=weights, bias=True) * 1.5 + 0.05 * np.eye(len(self._PRIOR))
            root = np.linalg.cholesky(spread)
            near = rng.random(_DRAWS) < 0.8
            drawn = rng.standard_normal((_DRAWS, len(self._PRIOR)))
            z = np.where(near[:, None], mean + drawn @ root.T, drawn)
            away = np.linalg.solve(root, (z - mean).T)
            log_near = -0.5 * (away**2).sum(axis=0) - np.log(np.diag(root)).sum()
            log_proposal = np.logaddexp(math.log(0.8) + log_near, math.log(0.2) - 0.5 * (z**2).sum(axis=1))
        z, walks, fits, weights = last
        chosen = rng.choice(_DRAWS, size=_DRAWS, p=weights)
        return self._complete(z[chosen], walks[chosen], fits.at(chosen), unit, rng)

    def _shapes(self, z: Array) -> tuple[Array, ...]:
        logs = self._PRIOR[:, 0] + self._PRIOR[:, 1] * z
        scale, power, rise, turn, knee = np.exp(logs).T
        return scale, power, self._size * rise, turn, knee

    def _fits(self, z: Array, walks: NDArray[np.int64]) -> "_Fits":
        """Level, fall and noise given the shapes: a linear regression with a normal-inverse-gamma posterior."""
        s, n = self._s, len(self._s)
        scale, power, rise, turn, knee = (each[:, None] for each in self._shapes(z))
        falling = _power(s[None, :], scale, power)  # (n_draws, n)
        span = falling[:, :1] - falling[:, -1:]
        target = self._y - rise * _rising(s - turn, knee)
        design = np.stack([np.ones_like(falling), falling / span], axis=2)  # (n_draws, n, 2)
        root_log = np.zeros(len(z))
        for i, (whiten, log_det) in enumerate(self._whiten):
            at = walks == i
            design[at] = np.einsum("ij,djk->dik", whiten, design[at])
            target[at] = target[at] @ whiten.T
            root_log[at] = log_det
        gram = np.einsum("dik,dil->dkl", design, design)
        # a fall of the size that is seen, or none
        gram[:, 1, 1] += (0.5 * _NOISE / self._size) ** 2
        inverse = np.linalg.inv(gram)
        moment = np.einsum("dik,di->dk", design, target)
        mean = np.einsum("dkl,dl->dk", inverse, moment)
        residual = np.maximum(0.0, (target**2).sum(axis=1) - (moment * mean).sum(axis=1))
        degrees = _NOISE_WEIGHT + n - 1
        square = _NOISE_WEIGHT * _NOISE**2 + residual
        log_likelihood = -root_log + 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * degrees * np.log(square)
        # a fall that is none, a rise from the start on, is left to the rise
        log_likelihood = np.where(mean[:, 1] > 0, log_likelihood, log_likelihood - 20)
        return _Fits(mean, inverse, square, degrees, span[:, 0], log_likelihood)

    def _complete(
        self, z: Array, walks: NDArray[np.int64], fits: "_Fits", unit: float, rng: np.random.Generator
    ) -> CurveFit:
        scale, power, rise, turn, knee = self._shapes(z)
        noise = np.sqrt(fits.square / rng.chisquare(fits.degrees, len(z)))
        root = np.linalg.cholesky(fits.inverse)
        linear = fits.mean + noise[:, None] * np.einsum("dkl,dl->dk", root, rng.standard_normal((len(z), 2)))
        level, fall = linear[:, 0], np.maximum(0.0, linear[:, 1]) / fits.span
        s = self._s
        form = level[:, None] + fall[:, None] * _power(s[None, :], scale[:, None], power[:, None])
        form += rise[:, None] * _rising(s - turn[:, None], knee[:, None])
        residual = self._y - form
        now = np.zeros(len(z))
        sizes = np.array(_WALKS)[walks]
        for i, walk in enumerate(_WALKS):
            if walk and (at := walks == i).any():
                covariance = np.eye(len(s)) + walk * np.minimum.outer(s, s)
                gain = np.linalg.solve(covariance, walk * s * s[-1])
                left = max(0.0, walk * s[-1] - float(gain @ (walk * s * s[-1])))
                now[at] = residual[at] @ gain + noise[at] * math.sqrt(left) * rng.standard_normal(int(at.sum()))
        return CurveFit(unit, level, fall, scale, power, rise, turn, knee, now, noise, noise * np.sqrt(sizes))


@dataclass(frozen=True)
class _Fits:
    """Of each draw: the regression's posterior, and how likely the data are."""

    mean: Array  # (n_draws, 2)
    inverse: Array  # (n_draws, 2, 2)
    square: Array
    degrees: float
    span: Array
    log_likelihood: Array

    def at(self, chosen: NDArray[np.int64]) -> "_Fits":
        return _Fits(
            self.mean[chosen],
            self.inverse[chosen],
            self.square[chosen],
            self.degrees,
            self.span[chosen],
            self.log_likelihood[chosen],
        )


def _estimate(values: Array) -> Estimate:
    low, middle, high = np.quantile(values, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
    return Estimate(float(middle), float(low), float(high))
