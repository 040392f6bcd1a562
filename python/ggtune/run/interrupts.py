"""SIGINT, SIGTERM and SIGHUP: quick, and never in the middle of something that has to be whole."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

# Windows has no SIGHUP
ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class RunInterruptedError(Exception):
    """A run that a signal ended.

    ``checkpoint`` is what it can go on from, None if no step was taken; ``problem`` says why the last step's checkpoint
    could not be written.
    """

    def __init__(self, signum: int, step: int, checkpoint: Path | None, problem: str | None = None) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name} after step {step}")
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint
        self.problem = problem


class Interrupts:
    """Turns the signals into :class:`KeyboardInterrupt`, but only inside :meth:`allowed`; elsewhere they wait for it.

    So a step's update, the metrics line and a checkpoint are never cut in two. A second SIGINT ends the process on the
    spot with status 130; files are renamed into place only when they are whole. Outside of the main thread, where
    Python delivers no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._open = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                # a signal that was ignored (a background job's SIGINT, SIGHUP under nohup) stays so
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            os._exit(128 + number)
        self.received = self.received or number
        if self._open:
            self._open = False
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Mark a stretch of work that may be given up."""
        try:
            self._open = True
            if self.received is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._open = False
