"""GGUF files: read with a message for the user, written whole or not at all, fingerprints of models."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ggtune.errors import ModelError
from ggtune.files import replacing
from ggtune.gguf.structure import Structure, read_structure

_SAMPLE_BYTES = 4096
_SAMPLE_DISTANCE_BYTES = 64 << 20
_HEADER_BYTES = 256  # at most, of one tensor or key beside its text
_RESERVE_BYTES = 64 << 10

KeyValue = str | int | float


def gguf_structure(path: str | os.PathLike[str]) -> Structure:
    """Check a GGUF file. Raises :class:`ModelError` for one that is missing, truncated or of another kind."""
    try:
        return read_structure(Path(path))
    except OSError as error:
        raise ModelError(f"can't read {path}: {error.strerror or error}") from error


def gguf_bytes(keys: Mapping[str, KeyValue], tensors: Mapping[str, NDArray[np.float32]]) -> int:
    """Bound the size of the file that :func:`write_gguf` writes."""
    header = sum(_HEADER_BYTES + len(key) + len(str(value).encode()) for key, value in keys.items())
    return _RESERVE_BYTES + header + sum(_HEADER_BYTES + len(name) + t.nbytes for name, t in tensors.items())


@contextmanager
def writing_gguf(path: Path, architecture: str, *, needed_bytes: int) -> Iterator[gguf.GGUFWriter]:
    """Give a writer to add keys and tensors to; the file is written at the end, whole or not at all.

    Raises :class:`ggtune.files.WriteError`.
    """
    with replacing(path, needed_bytes=needed_bytes) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        finally:
            # a second close does nothing; after a failure it fails again, which is no news
            with suppress(OSError):
                writer.close()


def write_gguf(
    path: Path, architecture: str, keys: Mapping[str, KeyValue], tensors: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write a file of string, u32 and f32 keys and F32 tensors. Raises as :func:`writing_gguf`."""
    with writing_gguf(path, architecture, needed_bytes=gguf_bytes(keys, tensors)) as writer:
        for key, value in keys.items():
            if isinstance(value, str):
                # add_string leaves an empty text out
                writer.add_key_value(key, value, gguf.GGUFValueType.STRING)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_float32(key, value)
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))


def model_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a model's header and samples of its data, blind to the file's name.

    Of each tensor its first and last 4 KiB count, and 4 KiB every 64 MiB between: quick for any size.
    """
    structure = gguf_structure(path)
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        digest.update(file.read(structure.data_offset))
        for tensor in structure.tensors:
            start, n_bytes = tensor.offset, tensor.n_bytes
            last = max(0, n_bytes - _SAMPLE_BYTES)
            for offset in sorted({*range(0, last, _SAMPLE_DISTANCE_BYTES), last}):
                file.seek(start + offset)
                digest.update(file.read(min(_SAMPLE_BYTES, n_bytes - offset)))
    return digest.hexdigest()
