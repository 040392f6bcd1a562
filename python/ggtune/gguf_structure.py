"""Bounds check of a GGUF file, done before a reader that checks nothing sees it, and where its data lies.

The format is that of ggml's ``docs/gguf.md``. Memory and time are bounded by the size of the file.
"""

import math
import mmap
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import gguf

from ggtune.errors import ModelError

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4  # of arrays in arrays
_OWN = "ggtune."


@dataclass(frozen=True)
class Structure:
    """Where what is in a GGUF file."""

    data_offset: int  # bytes of the header, with its padding
    extents: tuple[tuple[int, int], ...]  # offset in the file and bytes of each tensor, in the header's order
    ggtune_texts: dict[str, str]  # the text keys of ggtune's own, without the prefix


class _DamagedError(Exception):
    pass


class _Cursor:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.offset = 0

    def skip(self, n_bytes: int) -> None:
        if n_bytes > len(self._data) - self.offset:
            raise _DamagedError("the header ends behind the end of the file")
        self.offset += n_bytes

    def number(self, code: str) -> int:
        start = self.offset
        self.skip(struct.calcsize(code))
        return int(struct.unpack_from("<" + code, self._data, start)[0])

    def text(self) -> str:
        size = self.number("Q")
        start = self.offset
        self.skip(size)
        try:
            return self._data[start : self.offset].decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a name in the header is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            of, count = self.number("I"), self.number("Q")
            if of in _SCALAR_BYTES:
                self.skip(count * _SCALAR_BYTES[of])
                return
            if count > len(self._data):
                raise _DamagedError("an array of the header is larger than the file")
            for _ in range(count):
                self.value(of, depth + 1)
        else:
            raise _DamagedError(f"the header has a value of the unknown type {kind}")


def check_structure(path: Path) -> Structure:
    """Raise :class:`ModelError` where a count, length, type, shape or offset of the header can't be.

    ``OSError`` goes through. Much quicker than gguf-py's reader, which takes seconds for a large vocabulary.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{path} is not a GGUF file" + (" (it is empty)" if not magic else ""))
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _check(_Cursor(data), len(data))
            except _DamagedError as error:
                raise ModelError(f"{path}: the GGUF file is truncated or damaged: {error}") from None


def _check(cursor: _Cursor, n_bytes: int) -> Structure:
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise _DamagedError(f"version {version} of the format is not known")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    alignment = 32
    keys, texts = set(), {}
    for _ in range(n_keys):
        key, kind = cursor.text(), cursor.number("I")
        if key in keys:
            raise _DamagedError(f"the key {key} is there twice")
        keys.add(key)
        start = cursor.offset
        cursor.value(kind)
        after, cursor.offset = cursor.offset, start
        if key == "general.alignment":
            alignment = cursor.number("I") if kind == 4 else 0
        elif key.startswith(_OWN) and kind == _STRING:
            with suppress(_DamagedError):  # one that is not UTF-8 is none
                texts[key.removeprefix(_OWN)] = cursor.text()
        cursor.offset = after
    if alignment <= 0 or alignment & (alignment - 1):
        raise _DamagedError("general.alignment is no power of two")
    extents, names = [], set()
    for _ in range(n_tensors):
        name = cursor.text()
        if name in names:
            raise _DamagedError(f"the tensor {name} is there twice")
        names.add(name)
        n_dimensions = cursor.number("I")
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise _DamagedError(f"the tensor {name} has {n_dimensions} dimensions")
        shape = [cursor.number("Q") for _ in range(n_dimensions)]
        kind, offset = cursor.number("I"), cursor.number("Q")
        extents.append((name, offset, _tensor_bytes(name, kind, shape)))
        if offset % alignment:
            raise _DamagedError(f"the data of tensor {name} is not aligned")
    start = -(-cursor.offset // alignment) * alignment
    for name, offset, size in extents:
        if start + offset + size > n_bytes:
            raise _DamagedError(f"the data of tensor {name} ends behind the end of the file")
    return Structure(start, tuple((start + offset, size) for _, offset, size in extents), texts)


def _tensor_bytes(name: str, kind: int, shape: list[int]) -> int:
    try:
        block, type_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _DamagedError(f"the tensor {name} has the unknown type {kind}") from None
    if 0 in shape or shape[0] % block:
        raise _DamagedError(f"the tensor {name} has an impossible shape")
    return math.prod(shape) // block * type_bytes
