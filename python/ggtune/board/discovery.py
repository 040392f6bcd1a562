"""Run folders below other folders."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ggtune.run.status import read_status_file

_DEEPEST = 8  # folders below the one given
_MOST_FOLDERS = 50_000  # looked into: a whole disk is not searched
_MOST_SECONDS = 20.0


def runs_below(folders: Iterable[Path]) -> Iterator[Path]:
    """Find the run folders in trees; hidden folders and links are passed over, folders that can't be read too."""
    deadline = time.monotonic() + _MOST_SECONDS
    waiting = [(folder, 0) for folder in folders]
    n_seen = 0
    while waiting and n_seen < _MOST_FOLDERS and time.monotonic() < deadline:
        folder, depth = waiting.pop(0)
        n_seen += 1
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        if is_run(folder, {entry.name for entry in found}):
            yield folder
        if depth < _DEEPEST:
            waiting += [(folder / entry.name, depth + 1) for entry in found if _is_folder(entry)]


def is_run(folder: Path, names: set[str]) -> bool:
    """Say whether a folder with files of these names is a run's: one that began, or has come to nothing."""
    if not {"metrics.jsonl", "status.json"} & names:
        return False
    return "metrics.jsonl" in names or "state" in read_status_file(folder / "status.json")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False
