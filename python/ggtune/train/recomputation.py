"""How many layers are computed a second time for their gradient: less memory for more time."""

from ggtune.errors import GgtuneError
from ggtune.train.build import Build

_USABLE_SHARE = 0.9  # of the free memory: other programs go on, and the run's own Python side grows a little


def set_recomputation(built: Build, free_bytes: int) -> dict[str, int]:
    """Set ``recompute_layers`` of the engine as the settings ask, and return the bytes that are then needed, by part.

    ``"auto"`` takes as few as fit ``free_bytes``, all where even that is too much. The parts are those of
    ``Trainer.memory``, and what a checkpoint takes while it is written. Where the engine can compute no layer again,
    ``"auto"`` means none, and ``"layers"`` raises :class:`GgtuneError`.
    """
    engine, how, largest = built.engine, built.config.recompute, built.plan.largest
    checkpoint = {"checkpoint": 12 * built.adapter.n_params}  # adapter and both moments
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
        if sum(needed().values()) <= _USABLE_SHARE * free_bytes:
            high = engine.recompute_layers
        else:
            low = engine.recompute_layers + 1
    engine.recompute_layers = high
    return needed()
