"""The live screen of ``ggtune watch``: a run as it goes on, until it ends or a key ends the watching."""

import os
import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ggtune.board.keys import Keys, has_colours
from ggtune.board.live import LiveRun
from ggtune.board.screen import frame
from ggtune.errors import GgtuneError
from ggtune.run.status import RUNNING, RunStatus

_LOOK_S = 0.1  # for keys and a new size of the terminal
_LAST_LINES = 24  # of the picture that stays
_ENDING_KEYS = "qQ"


def can_show_screen() -> bool:
    """Say whether standard output is a terminal that can move its cursor."""
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown", "")


def terminal() -> Console:
    """Make the console of standard output, without colours where the terminal or the user wants none."""
    return Console(no_color=True if not has_colours() else None, highlight=False, markup=False, emoji=False)


def watch(folder: Path, *, every_s: float, console: Console) -> RunStatus:
    """Show the run in ``folder`` until it ends or q is pressed; leaves the last picture, and returns how it stands.

    Ctrl-C ends it as q does. Raises :class:`GgtuneError` where there is no run, or its folder goes away.
    """
    run = LiveRun(folder)
    _read_all(run)
    if _standing(run).state == RUNNING:
        try:
            with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
                _follow(run, every_s, console, live, keys)
        except KeyboardInterrupt as interruption:
            if type(interruption) is not KeyboardInterrupt:  # SIGTERM, SIGHUP
                raise
    status = _standing(run)
    for line in _picture(run, console, min(_LAST_LINES, console.size.height - 4), hint=""):
        console.print(line, overflow="crop", no_wrap=True)
    return status


def _follow(run: LiveRun, every_s: float, console: Console, live: Live, keys: Keys) -> None:
    while True:
        more = run.look()
        if _standing(run).state != RUNNING and not more:
            return
        size = console.size
        live.update(Group(*_picture(run, console, size.height)), refresh=True)
        next_look = time.monotonic() + (0.0 if more else every_s)
        while time.monotonic() < next_look and console.size == size:
            if any(key in _ENDING_KEYS for key in keys.pressed(min(_LOOK_S, every_s))):
                return


def _read_all(run: LiveRun) -> None:
    while run.look() and run.status is not None:
        pass


def _standing(run: LiveRun) -> RunStatus:
    if run.status is None:
        raise GgtuneError(run.problem)
    return run.status


def _picture(run: LiveRun, console: Console, height: int, **more: str) -> list[Text]:
    plain = not console.encoding.lower().startswith("utf")
    return frame(run, console.size.width, max(1, height), plain=plain, **more)
