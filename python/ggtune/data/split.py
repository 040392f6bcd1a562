"""Which samples are held out, and in which order the others are seen. All of it follows from seeds."""

import numpy as np
from numpy.typing import NDArray

from ggtune.errors import DataError
from ggtune.setting_texts import Holdout

IndexArray = NDArray[np.int64]


def hold_out(
    n_samples: int, holdout: Holdout, seed: int, groups: IndexArray | None = None
) -> tuple[IndexArray, IndexArray]:
    """Give indices ``(training, held out)``, each ascending.

    Samples of one group (``groups``: one number for each sample) stay together, so that no question is on both sides:
    groups are chosen, and those with fewer samples count as one all the same. Raises :class:`DataError` where none is
    left to train on. A fraction holds out at least one sample, but never the only one.
    """
    if groups is not None and len(groups):
        _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))  # groups in the order in which they come first
        chosen = hold_out(len(first), holdout, seed)[1]
        is_held_out = np.isin(order[group_of], chosen)
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    if holdout.kind == "every":
        held_out = np.arange(0, n_samples, int(holdout.value))
    else:
        count = int(holdout.value)
        if holdout.kind == "fraction":
            count = min(max(1, round(holdout.value * n_samples)), n_samples - 1) if holdout.value > 0 else 0
        held_out = np.sort(np.random.default_rng(seed).permutation(n_samples)[:count])
    training = np.setdiff1d(np.arange(n_samples), held_out)
    if not len(training):
        raise DataError(f"All {n_samples} samples are held out, none is left to train on. Use a smaller --holdout.")
    return training, held_out


def epoch_order(n_samples: int, seed: int, epoch: int) -> IndexArray:
    """Give the order of an epoch: a permutation that depends on ``(seed, epoch)`` alone."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples)
