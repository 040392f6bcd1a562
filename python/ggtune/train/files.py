"""Files written whole or not at all, GGUF files opened with a message for the user, fingerprints."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf

from ggtune.errors import GgtuneError, ModelError

_SAMPLE_BYTES = 4096


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; on success it is flushed to disk and renamed, on failure removed.

    An ``OSError`` becomes a :class:`GgtuneError` that names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise GgtuneError(f"can't write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_gguf(path: str | os.PathLike[str]) -> gguf.GGUFReader:
    """Open a GGUF file. Raises :class:`ModelError` for one that is missing, truncated or of another kind."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file" + (" (it is empty)" if not magic else ""))
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader parses without checks: anything may come out of a damaged file
        raise ModelError(f"{path} is damaged or truncated ({type(error).__name__}: {error})") from error


def read_text_field(reader: gguf.GGUFReader, key: str) -> str:
    """Return a string of the header, "" where there is none."""
    found = reader.get_field(key)
    if found is None or found.types != [gguf.GGUFValueType.STRING]:
        return ""
    return str(found.contents())


def model_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a model's header and the first 4 KiB of each tensor's data: quick for any size, blind to the file's name."""
    reader = open_gguf(path)
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        digest.update(file.read(reader.data_offset))
        for tensor in reader.tensors:
            file.seek(int(tensor.data_offset))
            digest.update(file.read(min(_SAMPLE_BYTES, int(tensor.n_bytes))))
    return digest.hexdigest()
