"""Which run folders this user has: one small file per run under ``$XDG_STATE_HOME/ggtune/runs``."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import replace_text


def _folder() -> Path:
    configured = os.environ.get("XDG_STATE_HOME", "")
    base = Path(configured) if configured.startswith("/") else Path.home() / ".local" / "state"
    return base / "ggtune" / "runs"


def register(run: Path) -> None:
    """Note a run folder; a home that can't be written only leaves it out of the list."""
    path = str(run.resolve())
    name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with suppress(GgtuneError, OSError, RuntimeError):
        replace_text(_folder() / name, path + "\n")


def known_runs() -> list[Path]:
    """Return the run folders that still exist, the oldest entry first; the others are forgotten."""
    try:
        entries = sorted(_folder().iterdir(), key=lambda entry: entry.stat().st_mtime)
    except (OSError, RuntimeError):
        return []
    runs = []
    for entry in entries:
        if entry.name.startswith("."):
            continue
        with suppress(OSError, UnicodeDecodeError):
            run = Path(entry.read_text(encoding="utf-8").removesuffix("\n"))
            if run.is_dir():
                runs.append(run)
            else:
                entry.unlink(missing_ok=True)
    return runs
