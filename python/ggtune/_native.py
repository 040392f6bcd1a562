"""The native module, or a message that says how to get it.

Import this inside the function (or the module of a subcommand) that needs the engine: loading it takes a while.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ggtune.errors import GgtuneError

_SPIN_COUNT = "GOMP_SPINCOUNT"
_OF_THE_USER = (_SPIN_COUNT, "OMP_WAIT_POLICY")


@contextmanager
def _short_waits() -> Iterator[None]:
    """Have libgomp's threads wait a few microseconds for each other and then sleep, if nothing else is said.

    They wait after every operation. A tight loop is best on an idle machine; where another program holds a processor it
    makes a step twenty times slower. libgomp reads the variable when it is loaded: afterwards the environment is as it
    was, for the rest of the process and its children. Where the process has loaded libgomp before, nothing changes.
    """
    if any(name in os.environ for name in _OF_THE_USER):
        yield
        return
    os.environ[_SPIN_COUNT] = "3000"
    try:
        yield
    finally:
        del os.environ[_SPIN_COUNT]


try:
    with _short_waits():
        from ggtune import _core as core
except ImportError as error:
    raise GgtuneError(
        f"the native module ggtune._core can't be loaded ({error}). Build it with `pip install .` in the source tree "
        "(a C++17 compiler is needed), with the same Python that runs ggtune."
    ) from error

core.kernel_variant()  # here and not at some later call: GGTUNE_CPU may name a variant that this machine can't run

__all__ = ["core"]
