"""All runs that the board shows, looked at by a thread; a change has a number, so that pages ask for what is new."""

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggtune.board.discovery import runs_below
from ggtune.board.live import LiveRun
from ggtune.board.views import row_of
from ggtune.run.registry import known_runs
from ggtune.run.status import RUNNING

_LOOK_S = 1.0  # between looks at a run that goes on
_ENDED_LOOK_S = 5.0  # at one that has ended: it may be resumed
_SEARCH_S = 10.0  # between searches for new runs
_SEARCH_SHARE = 20  # a search may take this part of the time
_ASLEEP_S = 30.0  # without a question from any page
_stamps = itertools.count(1)


class Entry:
    """A run on the board. ``version`` is the number of its last change; hold ``lock`` while reading ``run``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.id = run_id(folder)
        self.stamp = next(_stamps)  # of this look at the folder: it may go and come back as another run
        self.name = name
        self.run = LiveRun(folder)
        self.lock = threading.Lock()
        self.version = 0
        self.row: dict[str, Any] = {}
        self.next_look = 0.0

    def look(self, now: float) -> bool:
        """Read on; True where the row is another one than before."""
        with self.lock:
            try:
                more = self.run.look()
                row = row_of(self.id, self.name, self.run)
            except Exception as error:  # whatever is in its files, the others are looked at
                more, row = False, self._failed(error)
        going = self.run.status is not None and self.run.status.state == RUNNING
        self.next_look = now if more else now + (_LOOK_S if going else _ENDED_LOOK_S)
        if row == self.row:
            return False
        self.row = row
        return True

    def _failed(self, error: Exception) -> dict[str, Any]:
        reason = f"its files can't be shown: {type(error).__name__}: {error}"
        return {"id": self.id, "name": self.name, "folder": str(self.run.folder), "state": "unreadable",
                "reason": reason, "changed": 0}  # fmt: skip


class Collection:
    """The runs below ``folders``; without any, the user's known ones and those below the current folder."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._here = Path.cwd()
        self._entries: dict[str, Entry] = {}
        self._gone: dict[str, int] = {}  # ids and the number of their going
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._asked_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="board", daemon=True)
        self._next_search = 0.0
        self.version = 0
        self.is_read = False  # every run has been looked at

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._asked.set()
        self._thread.join(timeout=5)

    def asked(self) -> None:
        """Somebody looks at the board: go on looking at the runs."""
        self._asked_at = time.monotonic()
        self._asked.set()

    def entry(self, id_: str) -> Entry | None:
        """Return a run by its id."""
        return self._entries.get(id_)

    def changes(self, since: int) -> dict[str, Any]:
        """Return what has changed after number ``since``: rows of runs, and the ids of those that are gone."""
        with self._lock:
            rows = [entry.row for entry in self._entries.values() if entry.version > since and entry.row]
            gone = [id_ for id_, version in self._gone.items() if version > since]
            return {"version": self.version, "rows": rows, "gone": gone, "is_read": self.is_read}

    def _work(self) -> None:
        while not self._ended.is_set():
            if time.monotonic() >= self._next_search:
                self.search()
            is_more = self.look()
            self._ended.wait(0.0 if is_more else 0.2)
            if time.monotonic() - self._asked_at > _ASLEEP_S:
                self._asked.clear()
                self._asked.wait()

    def search(self) -> None:
        """Look for runs that are new, and for those that are gone."""
        began = time.monotonic()
        found = self._found()
        with self._lock:
            for id_ in [id_ for id_ in self._entries if id_ not in found]:
                del self._entries[id_]
                self.version += 1
                self._gone[id_] = self.version
            for id_, (folder, name) in found.items():
                if id_ not in self._entries:
                    self._entries[id_] = Entry(folder, name)
                    self._gone.pop(id_, None)
                    self.is_read = False
        now = time.monotonic()
        self._next_search = now + max(_SEARCH_S, _SEARCH_SHARE * (now - began))

    def look(self) -> bool:
        """Look at the runs whose time has come, a piece of each; True where one has more to read at once."""
        is_more = False
        for entry in list(self._entries.values()):
            now = time.monotonic()
            if self._ended.is_set() or now < entry.next_look:
                continue
            if entry.look(now):
                with self._lock:
                    self.version += 1
                    entry.version = self.version
            is_more |= entry.next_look <= now
        self.is_read = not is_more
        return is_more

    def _found(self) -> dict[str, tuple[Path, str]]:
        roots = self._folders or [self._here]
        folders = [] if self._folders else known_runs()
        found: dict[str, tuple[Path, str]] = {}
        for folder in [*runs_below(roots), *folders]:
            resolved = Path(os.path.realpath(folder))
            found.setdefault(run_id(resolved), (resolved, _name(resolved, self._here)))
        return found


def run_id(folder: Path) -> str:
    """Name a run in addresses."""
    return hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # of nobody
        return None


def _name(folder: Path, here: Path) -> str:
    """Shorten a path by the current folder or the user's home."""
    for base, before in ((here, ""), (_home(), "~/")):
        if base is not None and folder != base and folder.is_relative_to(base):
            return before + str(folder.relative_to(base))
    return str(folder)
