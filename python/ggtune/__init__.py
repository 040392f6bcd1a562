"""Fine-tune quantized GGUF models with LoRA on a plain CPU.

Names are imported when they are first used, so that ``import ggtune`` loads neither NumPy nor the native module.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggtune import pipeline
    from ggtune._core import Adapter, Generator, Model, Trainer
    from ggtune.config import TrainConfig
    from ggtune.train.session import fine_tune

__all__ = ["Adapter", "Generator", "Model", "TrainConfig", "Trainer", "__version__", "fine_tune", "pipeline"]

_HOME = {
    "Adapter": "ggtune._core",
    "Generator": "ggtune._core",
    "Model": "ggtune._core",
    "TrainConfig": "ggtune.config",
    "Trainer": "ggtune._core",
    "fine_tune": "ggtune.train.session",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from ggtune.version import version

        return version()
    if name == "pipeline":
        return import_module("ggtune.pipeline")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name] == "ggtune._core":
        from ggtune._native import core

        return getattr(core, name)
    return getattr(import_module(_HOME[name]), name)
