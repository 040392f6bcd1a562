"""Which samples are held out, and in which order the others are seen. All of it follows from seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggtune.errors import DataError, GgtuneError

IndexArray = NDArray[np.int64]


@dataclass(frozen=True)
class Holdout:
    """Which samples are held out: a ``fraction`` (at least one), a ``count``, or ``every`` n-th from the first on."""

    kind: Literal["fraction", "count", "every"]
    value: float

    @classmethod
    def parse(cls, text: str | float) -> Holdout:
        """Read ``"5%"``, ``0.05``, ``88``, ``"every:20"`` or 0. Raises :class:`GgtuneError`."""
        written = str(text).strip().lower()
        if match := re.fullmatch(r"every:(\d+)", written):
            if int(match[1]) >= 2:
                return cls("every", int(match[1]))
        elif match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", written):
            value = float(match[1]) / (100 if match[2] else 1)
            if match[2] or not value.is_integer():
                if value < 1:
                    return cls("fraction", value)
            else:
                return cls("count", value)
        raise GgtuneError(f"Can't hold out {text!r}: give a share (5% or 0.05), a number of samples, every:20, or 0.")

    def split(self, n_samples: int, seed: int) -> tuple[IndexArray, IndexArray]:
        """Give indices ``(training, held out)``, each ascending.

        Raises :class:`DataError` where none is left to train on. A fraction holds out at least one sample, but never
        the only one.
        """
        if self.kind == "every":
            held_out = np.arange(0, n_samples, int(self.value))
        else:
            count = int(self.value)
            if self.kind == "fraction":
                count = min(max(1, round(self.value * n_samples)), n_samples - 1) if self.value > 0 else 0
            held_out = np.sort(np.random.default_rng(seed).permutation(n_samples)[:count])
        training = np.setdiff1d(np.arange(n_samples), held_out)
        if not len(training):
            raise DataError(f"All {n_samples} samples are held out, none is left to train on. Use a smaller --holdout.")
        return training, held_out


def epoch_order(n_samples: int, seed: int, epoch: int) -> IndexArray:
    """Give the order of an epoch: a permutation that depends on ``(seed, epoch)`` alone."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples)
