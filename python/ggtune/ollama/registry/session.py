"""Uploads that are under way: where each goes on, kept on disk for the next time.

One small file for each blob and repository under ``$XDG_STATE_HOME/ggtune/uploads``, readable by its user alone: a
registry signs the address at which an upload goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ggtune.run.lock import try_flock

_KEPT_S = 7 * 24 * 3600


@dataclass(frozen=True)
class Session:
    """An upload that the registry has begun."""

    location: str
    offset: int  # bytes that the registry has


class SavedSession:
    """Remembers one upload; does nothing where there is no place for that."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle
        self.done = False

    def load(self) -> Session | None:
        """Return what an earlier process left."""
        if self._handle is None:
            return None
        try:
            os.lseek(self._handle, 0, os.SEEK_SET)
            value = json.loads(os.read(self._handle, 1 << 16))
            session = Session(value["location"], value["offset"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return session if isinstance(session.location, str) and isinstance(session.offset, int) else None

    def save(self, session: Session) -> None:
        """Remember how far it is."""
        if self._handle is None:
            return
        text = json.dumps({"location": session.location, "offset": session.offset}).encode()
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
            os.write(self._handle, text)


@contextmanager
def saved_session(host: str, repository: str, digest: str) -> Iterator[SavedSession]:
    """Open what is remembered of an upload; forgotten at the end where ``done`` was set or nothing was saved.

    Of two processes that upload the same blob only the first one's is remembered.
    """
    name = hashlib.sha256(f"{host}/{repository}@{digest}".encode()).hexdigest()[:32]
    path = _folder() / name
    handle = None
    with suppress(OSError):  # a home that can't be written only means that nothing is remembered
        _forget_old(path.parent)
        handle = _open(path)
    saved = SavedSession(handle)
    try:
        yield saved
    finally:
        if handle is not None:
            with suppress(OSError):
                if saved.done or os.fstat(handle).st_size == 0:
                    path.unlink(missing_ok=True)
            os.close(handle)


def _folder() -> Path:
    configured = os.environ.get("XDG_STATE_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".local" / "state"
    return base / "ggtune" / "uploads"


def _forget_old(folder: Path) -> None:
    """Registries keep an upload that nobody goes on with for a week: https://distribution.github.io/distribution/."""
    oldest = time.time() - _KEPT_S
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            if path.stat().st_mtime < oldest:
                path.unlink()


def _open(path: Path) -> int | None:
    """None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if try_flock(handle) is False:
        os.close(handle)
        return None
    return handle
