"""How many layers are computed a second time for their gradient: less memory for more time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ggtune.errors import GgtuneError
from ggtune.train.build import Build
from ggtune.train.placement import excess_bytes

if TYPE_CHECKING:
    from ggtune._core import Trainer

_USABLE_SHARE = 0.9  # of the free memory: other programs go on, and the run's own Python side grows a little


def set_recomputation(built: Build, free_bytes: int, usable: Mapping[str, int] | None = None) -> dict[str, int]:
    """Do as :func:`fit_recomputation` for a run's largest micro-batch, as its settings ask."""
    n_params, how, largest = built.adapter.n_params, built.config.recompute, built.plan.largest
    return fit_recomputation(built.engine, how, largest, free_bytes, n_params=n_params, usable=usable)


def fit_recomputation(
    engine: "Trainer",
    how: str,
    largest: tuple[int, int, int],
    free_bytes: int,
    *,
    n_params: int,
    usable: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Set ``recompute_layers`` of the engine, and return the bytes of main memory that are then needed, by part.

    ``largest`` are the tokens, targets and sequences of a micro-batch, ``n_params`` the adapter's. ``how`` "auto" takes
    as few layers as fit ``free_bytes``, and the bytes of devices in ``usable``; all where even that is too much. The
    parts are those of ``Trainer.memory``, and what a checkpoint takes while it is written. Where the engine can compute
    no layer again, "auto" means none, and "layers" raises :class:`GgtuneError`.
    """
    checkpoint = {"checkpoint": 12 * n_params}  # adapter and both moments
    if how == "layers" and engine.n_recomputable_layers == 0:
        raise GgtuneError(
            "recompute: llama.cpp's graph of this model can't be cut between its layers, so that none of them can be "
            "computed again. Give --no-recompute, and a smaller --ctx where that needs too much memory."
        )

    def needed() -> dict[str, int]:
        return {**engine.memory(*largest), **checkpoint}

    most = max(0, engine.n_recomputable_layers - 1)  # the inside of the last is needed as soon as it is there
    if how != "auto":
        engine.recompute_layers = most if how == "layers" else 0
        return needed()
    # the fewest in [low, high] that fit, or all
    low, high = 0, most
    while low < high:
        engine.recompute_layers = (low + high) // 2 if low else 0  # mostly none are needed
        fits_devices = excess_bytes(engine, largest, usable) <= 0 if usable else True
        if fits_devices and sum(needed().values()) <= _USABLE_SHARE * free_bytes:
            high = engine.recompute_layers
        else:
            low = engine.recompute_layers + 1
    engine.recompute_layers = high
    return needed()
