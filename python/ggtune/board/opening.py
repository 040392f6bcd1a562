"""Opening an address in the user's browser."""

import atexit
import html
import os
import tempfile
import webbrowser
from contextlib import suppress
from pathlib import Path


def open_in_browser(url: str, *, secret: bool) -> bool:
    """Open it; False where there is no browser. One with a ``secret`` is kept off command lines, which others see."""
    if not secret:
        return _open(url)
    handle, name = tempfile.mkstemp(prefix="ggtune-board-", suffix=".html")  # for its owner alone
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n')
    atexit.register(_remove, Path(name))
    return _open(Path(name).as_uri())


def _open(url: str) -> bool:
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
