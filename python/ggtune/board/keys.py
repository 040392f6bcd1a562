"""Single keys from a terminal, and how it can show things."""

import os
import select
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

try:
    import termios
    import tty
except ImportError:  # Windows: Ctrl-C has to do
    termios = tty = None  # type: ignore[assignment,unused-ignore]


class Keys:
    """Context manager: reads keys as they are pressed, unseen. Where standard input is no terminal there are none."""

    def __init__(self) -> None:
        self._handle: int | None = None
        self._before: Any = None

    def __enter__(self) -> "Keys":
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            handle = sys.stdin.fileno()
            try:
                self._before = termios.tcgetattr(handle)
                tty.setcbreak(handle)
                modes = termios.tcgetattr(handle)
                modes[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell on our screen
                termios.tcsetattr(handle, termios.TCSADRAIN, modes)
            except termios.error:
                return self
            self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            with suppress(termios.error, OSError):  # the terminal may be gone
                termios.tcsetattr(self._handle, termios.TCSADRAIN, self._before)

    def pressed(self, timeout_s: float) -> str:
        """Wait for keys and return them; "" where none came in time."""
        if self._handle is None:
            time.sleep(timeout_s)
            return ""
        if not select.select([self._handle], [], [], timeout_s)[0]:
            return ""
        pressed = os.read(self._handle, 64)
        if not pressed:  # its other end is closed
            self._handle = None
        return pressed.decode("ascii", "replace")


def has_colours() -> bool:
    """Say whether the terminal's description names colours; where there is no description it is taken to have them."""
    try:
        import curses

        curses.setupterm()
        return curses.tigetnum("colors") >= 8
    except Exception:  # no curses here, or no description of this terminal
        return True
