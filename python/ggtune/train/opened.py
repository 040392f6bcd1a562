"""A model that is only asked or measured, where its layers belong: on devices as far as they fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggtune._native import core
from ggtune.config import TrainConfig
from ggtune.errors import DeviceMemoryError
from ggtune.generate.slots import generation_bytes
from ggtune.train.placement import Places, Wanted, shared_out, wanted_devices

if TYPE_CHECKING:
    from ggtune._core import Model

_CONTEXT_TOKENS = 4096  # for whose keys and values there is to be room, or for as many as the model has


def opened_model(path: str | Path, settings: Mapping[str, Any] | None = None) -> "Model":
    """Load a model; ``settings`` are those of devices, by their names in :class:`TrainConfig`, the others are defaults.

    More layers than the model has stand for all, as in llama.cpp. Raises :class:`GgtuneError` for devices that there
    are not, and :class:`~ggtune.errors.DeviceMemoryError` where a given number of layers does not fit.
    """
    wanted = wanted_devices(TrainConfig(model=str(path), data="-", **(settings or {})))
    if wanted is None:
        return core.Model(str(path))
    header = core.Model(str(path), header_only=True)
    sizes = list(header.layer_bytes)
    n = len(sizes) if wanted.layers.n is None else min(wanted.layers.n, len(sizes))
    beside = generation_bytes(header, min(header.n_ctx_train or _CONTEXT_TOKENS, _CONTEXT_TOKENS))
    while wanted.auto and n and not _fits(wanted, sizes, n, beside):
        n -= 1
    while True:
        places = shared_out(wanted, sizes, n, wanted.usable) if n else Places()
        try:
            return core.Model(str(path), **places.arguments())
        except DeviceMemoryError:
            if not wanted.auto or not n:
                raise
            n -= max(1, n // 8)


def _fits(wanted: Wanted, sizes: list[int], n: int, beside: int) -> bool:
    """Whether the weights of the last ``n`` layers fit, and beside them the keys and values of all layers."""
    places = shared_out(wanted, sizes, n, wanted.usable)
    first = len(sizes) - n
    for name, layers in zip(places.devices, places.layers, strict=True):
        if sum(sizes[first : first + layers]) + beside > wanted.usable[name]:
            return False
        first += layers
    return True
