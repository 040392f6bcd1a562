"""Text files that a command line names: files, and folders with all that lie below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import DataError

SUFFIXES = (".txt", ".text", ".md", ".markdown")


@dataclass(frozen=True)
class Source:
    """A text file. ``name`` is its path below the folder that was named, or its own name."""

    path: Path
    name: str


def find_sources(inputs: Sequence[Path]) -> list[Source]:
    """List the files: those that are named, whatever their suffix, and of folders those with one of SUFFIXES.

    In a folder the order is that of the names, and hidden files and folders are left out. A file that is reached twice
    counts once. Raises :class:`DataError` that lists every input that is missing or has no text file.
    """
    sources: list[Source] = []
    problems: list[str] = []
    seen: set[Path] = set()
    for given in inputs:
        if given.is_dir():
            found = [Source(path, path.relative_to(given).as_posix()) for path in _texts(given)]
            if not found:
                problems.append(f"{given}: this folder has no text file ({', '.join(SUFFIXES)}).")
        elif given.is_file():
            found = [Source(given, given.name)]
        else:
            found = []
            problems.append(
                f"{given}: {'is no regular file' if given.exists() else 'there is no such file or folder'}."
            )
        for source in found:
            if source.path.resolve() not in seen:
                seen.add(source.path.resolve())
                sources.append(source)
    if problems:
        raise DataError("\n".join(problems))
    return sources


def _texts(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
