"""Files that appear whole or not at all, with the space for them looked at first."""

import itertools
import os
import shutil
import tempfile
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
def replacing(
    path: Path,
    *,
    needed_bytes: int = 0,
    folder: Path | None = None,
    prefix: str | None = None,
    mode: int | None = None,
) -> Iterator[Path]:
    """Give a temporary path to write to; on success it is flushed to the disk and renamed, on failure removed.

    It lies in ``folder`` (the file's own by default, and it has to be on the same disk) under a name that starts with
    ``prefix``. ``mode`` are its permissions, by default those of any new file. The file's folder is made where it is
    missing.

    Raises :class:`WriteError`, with the path and the space needed, where the disk has no room or an ``OSError`` occurs.
    """
    try:
        check_replaceable(path)
        check_space(path, needed_bytes)
        with making_folder(path.parent):
            name = f"{prefix or f'.{path.name}.'}{os.getpid()}-{next(_numbers)}{_SUFFIX}"
            with _renamed((folder or path.parent) / name, path, mode) as temporary:
                yield temporary
    except OSError as error:
        reason = error.strerror or f"the write was cut short: {error}"
        raise WriteError(f"can't write {path}: {reason}{_space(path, needed_bytes)}") from error


def check_replaceable(path: Path) -> None:
    """Raise :class:`WriteError` where something lies at ``path`` that no file can take the place of."""
    if path.exists() and not path.is_file():
        # a rename would put a file in the place of /dev/null
        raise WriteError(f"can't write {path}: it is {'a folder' if path.is_dir() else 'not a regular file'}")


def check_writable(folder: Path) -> None:
    """Raise :class:`WriteError` where no file can be made in ``folder``, or the folder itself can't; leaves nothing."""
    try:
        there = next(each for each in [folder, *folder.absolute().parents] if each.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise WriteError(f"can't write to the folder {folder}: {error.strerror or error}") from error


@contextmanager
def making_folder(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; after a failure the new ones are removed if they are empty.

    Raises :class:`WriteError` where it can't be made.
    """
    made = []
    try:
        try:
            made = [parent for parent in [folder, *folder.parents] if not parent.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"can't write to the folder {folder}: {error.strerror or error}") from error
        yield
    except BaseException:
        for new in made:
            with suppress(OSError):
                new.rmdir()
        raise


@contextmanager
def _renamed(temporary: Path, path: Path, mode: int | None) -> Iterator[Path]:
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
    sync_folder(path.parent)


@contextmanager
def replacing_text(path: Path, text: str, *, mode: int | None = None) -> Iterator[None]:
    """Write UTF-8 that takes its name when the block has ended well. Raises as :func:`replacing`."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:  # an undecodable byte of the command line
        raise WriteError(f"can't write {path}: {text[error.start]!a} in its text is no character of Unicode") from error
    with replacing(path, needed_bytes=len(data), mode=mode) as temporary:
        temporary.write_bytes(data)
        yield


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8. Raises as :func:`replacing`."""
    with replacing_text(path, text):
        pass


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


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system can open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
