"""Files that appear whole or not at all, with the space for them looked at first."""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.system import format_bytes

_SUFFIX = ".tmp"
_numbers = itertools.count()


class WriteError(GgtuneError):
    """A file that can't be written; what had its name is unchanged."""


@contextmanager
def whole_file(
    path: Path, *, folder: Path | None = None, prefix: str | None = None, mode: int | None = None
) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is flushed to the disk and renamed, on failure removed.

    It lies in ``folder`` (the file's own by default, and it has to be on the same disk) under a name that starts with
    ``prefix``. ``mode`` are its permissions, by default those of any new file. ``OSError`` goes through.
    """
    temporary = (folder or path.parent) / f"{prefix or f'.{path.name}.'}{os.getpid()}-{next(_numbers)}{_SUFFIX}"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def replacing(path: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """As :func:`whole_file`, in a folder that is made where it is missing.

    Raises :class:`WriteError`, with the path and the space needed, where the disk has no room or an ``OSError`` occurs.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_space(path, needed_bytes)
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        reason = error.strerror or f"the write was cut short: {error}"
        raise WriteError(f"can't write {path}: {reason}{_space(path, needed_bytes)}") from error


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8. Raises as :func:`replacing`."""
    data = text.encode("utf-8")
    with replacing(path, needed_bytes=len(data)) as temporary:
        temporary.write_bytes(data)


def free_bytes(path: Path) -> int:
    """Return the free space on the disk that holds, or would hold, ``path``."""
    there = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    return shutil.disk_usage(there).free


def check_space(path: Path, needed_bytes: int) -> None:
    """Raise :class:`WriteError` where the disk of ``path`` has less than ``needed_bytes`` free."""
    if needed_bytes and free_bytes(path) < needed_bytes:
        raise WriteError(f"can't write {path}: the disk is full{_space(path, needed_bytes)}")


def _space(path: Path, needed_bytes: int) -> str:
    if not needed_bytes:
        return ""
    try:
        return f" ({format_bytes(needed_bytes)} needed, {format_bytes(free_bytes(path))} free)"
    except OSError:
        return f" ({format_bytes(needed_bytes)} needed)"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
