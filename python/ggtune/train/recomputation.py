"""How many layers are computed a second time for their gradient: less memory for more time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    from ggtune._core import Trainer

_USABLE_SHARE = 0.9  # of the free memory: other programs go on, and the run's own Python side grows a little


def set_recomputation(
    engine: "Trainer",
    how: str,
    n_layer: int,
    largest: tuple[int, int, int],
    free_bytes: int,
    beside: Mapping[str, int],
) -> dict[str, int]:
    """Set ``engine.recompute_layers`` and return the bytes that a run then needs, by part.

    ``how`` is ``"none"``, ``"layers"`` (all that it helps with) or ``"auto"``: as few as fit ``free_bytes``, all where
    even that is too much. ``largest`` is (tokens, targets, sequences). The parts are those of
    ``Trainer.memory`` and those of ``beside``. Where the engine can compute no layer again, ``"auto"`` means none, and
    ``"layers"`` raises :class:`GgtuneError`.
    """
    if how == "layers" and engine.n_recomputable_layers == 0:
        raise GgtuneError(
            "recompute: llama.cpp's graph of this model can't be cut between its layers, so that none of them can be "
            "computed again. Give --no-recompute, and a smaller --ctx where that needs too much memory."
        )

    def needed() -> dict[str, int]:
        return {**engine.memory(*largest), **beside}

    most = max(
        min(n_layer, engine.n_recomputable_layers) - 1, 0
    )  # the inside of the last layer is needed as soon as it is there
    if how != "auto":
        engine.recompute_layers = most if how == "layers" else 0
        return needed()
    # the fewest in [low, high] that fit, or all
    low, high = 0, most
    while low < high:
        engine.recompute_layers = (low + high) // 2 if low else 0  # mostly none are needed
        if sum(needed().values()) <= _USABLE_SHARE * free_bytes:
            high = engine.recompute_layers
        else:
            low = engine.recompute_layers + 1
    engine.recompute_layers = high
    return needed()
