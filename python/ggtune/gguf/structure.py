"""The reader of GGUF files on Python's side: every count, length and offset is checked before it is followed.

The format is that of ggml's ``docs/gguf.md``. Memory and time are bounded by the size of the file; arrays, which hold
the vocabulary, and the tensors' data are passed over, and read only when they are asked for.
"""

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from ggtune.errors import ModelError

# the struct module's letters for the types of single values; strings and arrays are 8 and 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALAR_BYTES = {kind: struct.calcsize(letter) for kind, letter in _SCALARS.items()}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4  # of arrays in arrays
_OWN = "ggtune."
_FLOATS = {"F32": "<f4", "F16": "<f2"}

Value = str | bytes | int | float
"""A single value of a header; bytes are a text that is not UTF-8."""


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a GGUF file."""

    name: str
    type_name: str  # "Q4_K"
    shape: tuple[int, ...]  # in ggml's order, the innermost dimension first
    offset: int  # in the file
    n_bytes: int


@dataclass(frozen=True)
class Structure:
    """What a GGUF file says of itself, and where what is in it."""

    path: Path
    data_offset: int  # bytes of the header, with its padding
    tensors: tuple[TensorPlace, ...]  # in the header's order
    values: Mapping[str, Value]  # the keys with a single value
    arrays: Mapping[str, tuple[int, int, int]]  # of the others: type of the elements, their number, offset of the first

    @property
    def ggtune_texts(self) -> dict[str, str]:
        """The text keys of ggtune's own, without the prefix."""
        own = {key: value for key, value in self.values.items() if key.startswith(_OWN)}
        return {key.removeprefix(_OWN): value for key, value in own.items() if isinstance(value, str)}

    def text(self, key: str) -> str:
        """Return a string, "" where there is none or where it is not UTF-8."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | float | None:
        """Return a number, None where there is none."""
        value = self.values.get(key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def numbers(self, key: str) -> list[int | float]:
        """Read an array of numbers, or a single one; empty where there is none. ``OSError`` goes through."""
        single = self.number(key)
        if single is not None:
            return [single]
        kind, count, offset = self.arrays.get(key, (_STRING, 0, 0))
        if kind not in _SCALARS:
            return []
        with self.path.open("rb") as file:
            file.seek(offset)
            return list(struct.unpack(f"<{count}{_SCALARS[kind]}", file.read(count * _SCALAR_BYTES[kind])))

    def floats(self, tensor: TensorPlace) -> NDArray[np.float32]:
        """Read a tensor of F32 or F16, of NumPy shape: the innermost dimension last. ``OSError`` goes through.

        Raises :class:`ModelError` for another type, and where the file has become shorter since it was checked.
        """
        if tensor.type_name not in _FLOATS:
            raise ModelError(f"{self.path}: tensor {tensor.name} is {tensor.type_name}, not {' or '.join(_FLOATS)}")
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.n_bytes)
        if len(data) != tensor.n_bytes:
            raise ModelError(f"{self.path}: the GGUF file has become shorter while it was read")
        return np.frombuffer(data, _FLOATS[tensor.type_name]).reshape(tensor.shape[::-1]).astype(np.float32)

    def texts(self, key: str) -> Iterator[bytes]:
        """Read the elements of an array of strings one by one; there are none where the key is no such array.

        ``OSError`` goes through; ``struct.error`` is raised where the file has changed since it was checked.
        """
        kind, count, offset = self.arrays.get(key, (_STRING, 0, 0))
        if kind != _STRING or not count:
            return
        size_of = struct.Struct("<Q").unpack_from
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for _ in range(count):
                start = offset + 8
                offset = start + size_of(data, offset)[0]
                yield data[start:offset]


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

    def raw_text(self) -> bytes:
        size = self.number("Q")
        start = self.offset
        self.skip(size)
        return self._data[start : self.offset]

    def text(self) -> str:
        try:
            return self.raw_text().decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a name in the header is not UTF-8") from None

    def single(self, kind: int) -> Value:
        """Read a value that is no array."""
        if kind != _STRING:
            start = self.offset
            self.skip(_SCALAR_BYTES[kind])
            value: int | float = struct.unpack_from("<" + _SCALARS[kind], self._data, start)[0]
            return value
        raw = self.raw_text()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw

    def skip_texts(self, count: int) -> None:
        """Pass over an array of strings: the loop that a large vocabulary's time goes into."""
        data, offset, n_bytes = self._data, self.offset, len(self._data)
        size_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if offset + 8 > n_bytes:
                raise _DamagedError("the header ends behind the end of the file")
            offset += 8 + size_of(data, offset)[0]
        self.offset = min(offset, n_bytes)
        self.skip(offset - self.offset)

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
            if of == _STRING:
                self.skip_texts(count)
                return
            for _ in range(count):
                self.value(of, depth + 1)
        else:
            raise _DamagedError(f"the header has a value of the unknown type {kind}")


def read_structure(path: Path) -> Structure:
    """Read where everything of a model file lies.

    Raises :class:`ModelError` where a count, length, type, shape or offset of the header can't be; ``OSError`` goes
    through. gguf-py's reader checks nothing, and takes seconds for a large vocabulary.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        if magic != b"GGUF":
            empty = "" if magic else " (it is empty)"
            raise ModelError(f"{path}: not a GGUF file{empty}: give one as llama.cpp and Ollama use it")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read(path, _Cursor(data), len(data))
            except _DamagedError as error:
                raise ModelError(f"{path}: the GGUF file is truncated or damaged: {error}") from None


def _read(path: Path, cursor: _Cursor, n_bytes: int) -> Structure:
    cursor.skip(4)
    version = cursor.number("I")
    if version not in (2, 3):
        raise _DamagedError(f"version {version} of the format is not known")
    n_tensors, n_keys = cursor.number("Q"), cursor.number("Q")
    alignment = 32
    values: dict[str, Value] = {}
    arrays: dict[str, tuple[int, int, int]] = {}
    for _ in range(n_keys):
        key, kind = cursor.text(), cursor.number("I")
        if key in values or key in arrays:
            raise _DamagedError(f"the key {key} is there twice")
        if kind == _STRING or kind in _SCALARS:
            values[key] = cursor.single(kind)
        else:
            start = cursor.offset
            cursor.value(kind)
            after, cursor.offset = cursor.offset, start
            arrays[key] = (cursor.number("I"), cursor.number("Q"), cursor.offset)
            cursor.offset = after
        if key == "general.alignment":
            alignment = int(values[key]) if kind == _UINT32 else 0
    if alignment <= 0 or alignment & (alignment - 1):
        raise _DamagedError("general.alignment is no power of two")
    tensors: list[TensorPlace] = []
    names = set()
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
        type_name, size = _type_and_bytes(name, kind, shape)
        tensors.append(TensorPlace(name, type_name, tuple(shape), offset, size))
        if offset % alignment:
            raise _DamagedError(f"the data of tensor {name} is not aligned")
    start = -(-cursor.offset // alignment) * alignment
    for tensor in tensors:
        if start + tensor.offset + tensor.n_bytes > n_bytes:
            raise _DamagedError(f"the data of tensor {tensor.name} ends behind the end of the file")
    placed = tuple(replace(tensor, offset=start + tensor.offset) for tensor in tensors)
    return Structure(path, start, placed, values, arrays)


def _type_and_bytes(name: str, kind: int, shape: list[int]) -> tuple[str, int]:
    try:
        type_ = gguf.GGMLQuantizationType(kind)
        block, type_bytes = gguf.GGML_QUANT_SIZES[type_]
    except (ValueError, KeyError):
        raise _DamagedError(f"the tensor {name} has the unknown type {kind}") from None
    if 0 in shape or shape[0] % block:
        raise _DamagedError(f"the tensor {name} has an impossible shape")
    return type_.name, math.prod(shape) // block * type_bytes
