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
        is_held_out = _in_chosen_groups(groups, holdout, seed)
    else:
        is_held_out = np.zeros(n_samples, np.bool_)
        is_held_out[_chosen(n_samples, holdout, seed)] = True
    if is_held_out.all():
        raise DataError(f"All {n_samples} samples are held out, none is left to train on. Use a smaller --holdout.")
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def _chosen(n: int, holdout: Holdout, seed: int) -> IndexArray:
    """Choose among n samples or groups; some may be left to train on, or none."""
    if holdout.kind == "every":
        return np.arange(0, n, int(holdout.value))
    count = int(holdout.value)
    if holdout.kind == "fraction":
        count = min(max(1, round(holdout.value * n)), n - 1) if holdout.value > 0 else 0
    return np.random.default_rng(seed).permutation(n)[:count]


def _in_chosen_groups(groups: IndexArray, holdout: Holdout, seed: int) -> NDArray[np.bool_]:
    """Whether each sample's group is chosen, of the groups in the order in which they come first.

    There may be millions of samples: 32-bit indices, and no array longer than it is needed.
    """
    ascending = np.argsort(groups, kind="stable").astype(np.uint32)  # within a group the first sample comes first
    found = groups[ascending]
    starts = np.ones(len(found), np.bool_)
    starts[1:] = found[1:] != found[:-1]
    del found
    first = ascending[starts]  # sample of each group
    is_chosen = np.zeros(len(groups), np.bool_)
    is_chosen[np.sort(first)[_chosen(len(first), holdout, seed)]] = True
    of_group = is_chosen[first]
    is_held_out = np.empty(len(groups), np.bool_)
    is_held_out[ascending] = of_group[np.cumsum(starts, dtype=np.uint32) - np.uint32(1)]
    return is_held_out


def epoch_order(n_samples: int, seed: int, epoch: int) -> IndexArray:
    """Give the order of an epoch: a permutation that depends on ``(seed, epoch)`` alone."""
    return np.random.default_rng([seed, epoch]).permutation(n_samples)
