"""The folders of an Ollama store: blobs named by their SHA-256, and manifests that list them.

A server lists a manifest as soon as it is there. At its start it deletes blobs that no manifest names, and files in the
blob folder that are no blob once they are an hour old. So every temporary file lies in the blob folder under a name
that starts like a blob's and is none: what a crash leaves is cleared away, and is never taken for a model.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.files import WriteError, free_bytes, making_folder, replacing, sync_folder
from ggtune.ollama.manifest import Layer
from ggtune.ollama.names import ModelName
from ggtune.run.lock import try_flock
from ggtune.system import format_bytes

_CHUNK_BYTES = 4 << 20
_RESERVE_BYTES = 16 << 20  # left free on the store's disk, for the manifest and everybody else
_POLL_S = 0.2
_MODE = 0o644  # Ollama's service runs as a user of its own

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were read or written since the last call."""


@dataclass(frozen=True)
class Content:
    """A layer's bytes, in memory or in a file, before they are a blob."""

    layer: Layer
    source: Path | bytes


def describe(media_type: str, source: Path | bytes, on_bytes: OnBytes) -> Content:
    """Hash a file or text; ``on_bytes`` hears of files alone. Raises ``OSError``."""
    digest = hashlib.sha256()
    size = 0
    for chunk in _chunks(source):
        digest.update(chunk)
        size += len(chunk)
        if isinstance(source, Path):
            on_bytes(len(chunk))
    return Content(Layer(media_type, f"sha256:{digest.hexdigest()}", size), source)


class BlobStore:
    """One store. All but :meth:`read_manifest` raise :class:`WriteError` or ``OSError``: see :func:`store_errors`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._blobs = self.folder / "blobs"

    def path(self, layer: Layer) -> Path:
        """Where the blob lies once it is there."""
        return self._blobs / layer.digest.replace(":", "-")

    def partial_path(self, layer: Layer) -> Path:
        """Where the blob lies while it is fetched."""
        return self._blobs / f"{layer.digest.replace(':', '-')}-ggtune-partial"

    def manifest_path(self, name: ModelName) -> Path:
        """Where the manifest of a model lies."""
        return self.folder / "manifests" / name.manifest_path()

    def holds(self, layer: Layer, on_bytes: OnBytes = lambda n: None) -> bool:
        """Look whether the blob is there and its content has its digest."""
        path = self.path(layer)
        try:
            if path.stat().st_size != layer.size:
                return False
            return describe("", path, on_bytes).layer.digest == layer.digest
        except FileNotFoundError:
            return False

    def put(self, content: Content, on_bytes: OnBytes) -> Path | None:
        """Make sure that the blob is there and right. Returns its path where one was there with another content.

        Raises :class:`GgtuneError` where the source is no longer what it was when it was hashed.
        """
        path = self.path(content.layer)
        damaged = path.exists()
        if self.holds(content.layer, on_bytes):
            path.touch()
            return None
        digest = hashlib.sha256()
        # a name of its own on every machine that writes to this store
        prefix = f"sha256-{secrets.token_hex(8)}-"
        beside = replacing(path, needed_bytes=content.layer.size, prefix=prefix, mode=_MODE)
        with beside as temporary, temporary.open("wb") as file:
            for chunk in _chunks(content.source):
                file.write(chunk)
                digest.update(chunk)
                if isinstance(content.source, Path):
                    on_bytes(len(chunk))
            if isinstance(content.source, Path) and f"sha256:{digest.hexdigest()}" != content.layer.digest:
                raise GgtuneError(
                    f"{content.source}: changed while it was copied. Try again when nothing writes to it."
                )
        return path if damaged else None

    def write_manifest(self, name: ModelName, data: bytes) -> Path:
        """Let the model appear, or take another's place. All its blobs have to be there."""
        path = self.manifest_path(name)
        prefix = f"sha256-manifest-{secrets.token_hex(8)}-"
        beside = replacing(path, needed_bytes=len(data), folder=self._blobs, prefix=prefix, mode=_MODE)
        with beside as temporary:
            temporary.write_bytes(data)
        return path

    def read_manifest(self, name: ModelName) -> bytes:
        """Raise :class:`GgtuneError` where the store has no such model."""
        path = self.manifest_path(name)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise GgtuneError(f"{self.folder}: this Ollama store has no model {name} ({path} is missing).") from None
        except OSError as error:
            raise GgtuneError(f"{path}: can't be read: {error.strerror}.") from None

    def manifests(self, host: str) -> Iterator[tuple[str, bytes]]:
        """Repository (``namespace/model``) and manifest of each model under ``host``; unreadable ones are left out."""
        for path in sorted((self.folder / "manifests" / host).glob("*/*/*")):
            with suppress(OSError):
                yield f"{path.parent.parent.name}/{path.parent.name}", path.read_bytes()

    def check_free_space(self, needed_bytes: int) -> None:
        """Raise :class:`GgtuneError` where so many new bytes would not fit."""
        free = free_bytes(self.folder)
        if needed_bytes and needed_bytes + _RESERVE_BYTES > free:
            raise GgtuneError(
                f"{self.folder}: the disk has too little room: {format_bytes(needed_bytes + _RESERVE_BYTES)} needed "
                f"({format_bytes(_RESERVE_BYTES)} of them stay free), {format_bytes(free)} free. "
                "Make room, or name a store on another disk."
            )


class PartialBlob:
    """A blob that arrives piece by piece, perhaps over several runs of the program: see :func:`partial_blob`."""

    def __init__(self, store: BlobStore, layer: Layer, file: FileIO) -> None:
        self.size = 0  # bytes that are there
        self._store = store
        self._layer = layer
        self._digest = hashlib.sha256()
        self._file = file
        while chunk := file.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            self.size += len(chunk)
        if self.size > layer.size:
            self.restart()

    def write(self, data: bytes) -> None:
        """Append. Raises ``OSError``."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._digest.update(data)
        self.size += len(data)

    def restart(self) -> None:
        """Throw away what has arrived. Raises ``OSError``."""
        self._file.truncate(0)
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self.size = 0

    def is_right(self) -> bool:
        """Compare what has arrived with the digest."""
        return self.size == self._layer.size and f"sha256:{self._digest.hexdigest()}" == self._layer.digest

    def finish(self) -> None:
        """Make it the blob. Raises ``OSError``."""
        os.fsync(self._file.fileno())
        path, partial = self._store.path(self._layer), self._store.partial_path(self._layer)
        partial.chmod(_MODE)
        if os.name == "nt":  # renames no open file
            self._file.close()
        partial.replace(path)  # still locked: who waits for the lock sees that it is another file now
        self._file.close()
        sync_folder(path.parent)


@contextmanager
def partial_blob(store: BlobStore, layer: Layer, *, on_wait: Callable[[], None]) -> Iterator[PartialBlob]:
    """Open what has arrived of a blob.

    It is kept when the block is left early, unless the disk failed: its room is wanted more then. One process has it
    at a time; another one waits (``on_wait`` hears of it once) and goes on with what is there. Raises ``OSError``, and
    :class:`WriteError` where the folder can't be made.
    """
    path = store.partial_path(layer)
    with making_folder(path.parent):
        waited = False
        while (file := _open_locked(path)) is None:
            if not waited:
                on_wait()
            waited = True
            time.sleep(_POLL_S)
        keep = True
        try:
            partial = PartialBlob(store, layer, file)
            try:
                yield partial
            finally:
                keep = partial.size > 0
        except OSError:
            keep = False
            raise
        finally:
            if not file.closed:
                if not keep:
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                file.close()


def _open_locked(path: Path) -> FileIO | None:
    """None where another process has the file, or has just finished it."""
    # unbuffered: what was written is there after a kill, and a full disk shows at the write
    file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+b")
    try:
        if try_flock(file.fileno()) is not False and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


@contextmanager
def store_errors(store_dir: Path) -> Iterator[None]:
    """Turn what the system says about the store's disk into a :class:`GgtuneError` that names the store."""
    try:
        yield
    except (OSError, WriteError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror + (f" ({error.filename})" if error.filename else "")
        raise GgtuneError(
            f"{store_dir}: can't write to this Ollama store: {reason}. Name another one, make room, or run as the user "
            "that it belongs to."
        ) from error


def _chunks(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
