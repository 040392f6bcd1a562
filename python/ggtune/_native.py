"""The native module, or a message that says how to get it.

Import this inside the function (or the module of a subcommand) that needs the engine: loading it takes a while.
"""

from ggtune.errors import GgtuneError

try:
    from ggtune import _core as core
except ImportError as error:
    raise GgtuneError(
        f"the native module ggtune._core can't be loaded ({error}). Build it with `pip install .` in the source tree "
        "(a C++17 compiler is needed), with the same Python that runs ggtune."
    ) from error

core.kernel_variant()  # here and not at some later call: GGTUNE_CPU may name a variant that this machine can't run

__all__ = ["core"]
