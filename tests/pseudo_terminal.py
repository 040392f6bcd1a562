"""A program in a pseudo-terminal, and the screen that it draws, kept by pyte."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyte

_ALTERNATE = 1049 << 5  # pyte's number for the private mode of the alternate screen


class _Screen(pyte.Screen):
    """pyte's with the alternate screen, which it does not know."""

    main: Any = None

    def set_mode(self, *modes: int, **options: Any) -> None:
        super().set_mode(*modes, **options)
        if self._is_alternate(modes, options) and self.main is None:
            self.main = [dict(self.buffer[y]) for y in range(self.lines)], (self.cursor.x, self.cursor.y)
            self.erase_in_display(2)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        super().reset_mode(*modes, **options)
        if self._is_alternate(modes, options) and self.main is not None:
            rows, (self.cursor.x, self.cursor.y) = self.main
            self.erase_in_display(2)
            for y, row in enumerate(rows[: self.lines]):
                self.buffer[y].update(row)
            self.main = None

    @staticmethod
    def _is_alternate(modes: Sequence[int], options: dict[str, Any]) -> bool:
        return bool(options.get("private")) and (1049 in modes or _ALTERNATE in modes)


class PseudoTerminal:
    """Runs ``command``; ``sent`` is all that it has written, and ``lines`` the screen as it stands."""

    def __init__(self, command: Sequence[str], columns: int, lines: int, environment: dict[str, str]) -> None:
        self.screen = _Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.sent = b""
        self._handle, end = pty.openpty()
        self._size(columns, lines)
        self.modes_before = termios.tcgetattr(end)
        self.process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True, close_fds=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._end = end  # kept open, for its modes

    def _size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._handle, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._end)

    @property
    def is_alternate(self) -> bool:
        return self.screen.main is not None

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def read(self, seconds: float = 0.05) -> None:
        while select.select([self._handle], [], [], seconds)[0]:
            try:
                data = os.read(self._handle, 1 << 16)
            except OSError:
                return
            if not data:
                return
            self.sent += data
            self._stream.feed(data)
            seconds = 0.0

    def wait_for(self, condition: str | Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not (condition in self.text if isinstance(condition, str) else condition()):
            assert time.monotonic() < deadline, f"{condition} did not come:\n{self.text}"
            self.read()

    def resize(self, columns: int, lines: int) -> None:
        self._size(columns, lines)
        self.screen.resize(lines, columns)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def press(self, keys: bytes) -> None:
        os.write(self._handle, keys)

    def end(self, seconds: float = 60) -> int:
        """Wait for the program's end; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self.read()
        self.read(0.2)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for handle in (self._handle, self._end):
            os.close(handle)
