"""SIGTERM and SIGHUP as exceptions, so that what was begun is cleaned up; the training loop has handlers of its own."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TerminatedError(KeyboardInterrupt):
    """A signal that ends the process, with the status 128 + ``signum``."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _raise(number: int, frame: FrameType | None) -> None:
    raise TerminatedError(number)


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise :class:`TerminatedError` in the main thread; signals that are ignored stay so."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
