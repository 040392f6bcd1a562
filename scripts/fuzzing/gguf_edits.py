"""A GGUF file in parts, and edits of it that leave the rest of the file consistent.

An edit is a JSON array, its name first, so that a finding is a short text:

    ["set", key, kind, value]        a key's value; ["set", key, 9, [element kind, [values]]] for an array
    ["item", key, index, value]      one element of an array
    ["resize", key, count]           an array, cut or repeated
    ["unset", key]
    ["architecture", name]           with the prefix of all keys
    ["shape", tensor, ne, type]      with the tensor's data, cut or repeated
    ["rename", tensor, name]
    ["copy", tensor, name]
    ["drop", tensor]
    ["fill", tensor, hex]            the data, with a repeated pattern
    ["bytes", offset, hex]           of the whole file, after all others
    ["truncate", length]             likewise

Edits of a key or tensor that an earlier one removed do nothing. Texts are Latin-1, to hold any bytes.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import gguf

ALIGNMENT = 32
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_TENSOR_BYTES = 1 << 20  # a shape may ask for more than the file then has

Edit = list[Any]


@dataclass
class Key:
    """One key; an array's ``value`` is a list of ``element`` kind."""

    kind: int
    element: int
    value: Any


@dataclass
class Tensor:
    """One tensor; ``ne`` in ggml's order."""

    ne: list[int]
    kind: int
    data: bytes


class Parts:
    """The keys and tensors of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        _, _, n_tensors, n_keys = self._numbers("<4sIQQ")
        self.keys: dict[str, Key] = {}
        for _ in range(n_keys):
            name = self._text()
            self.keys[name] = self._key()
        places = [(self._text(), self._place()) for _ in range(n_tensors)]
        start = -(-self._at // ALIGNMENT) * ALIGNMENT
        self.tensors: dict[str, Tensor] = {}
        for name, (ne, kind, offset) in places:
            begin = start + offset
            self.tensors[name] = Tensor(ne, kind, data[begin : begin + tensor_bytes(ne, kind)])

    def _numbers(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        return values

    def _text(self) -> str:
        (size,) = self._numbers("<Q")
        self._at += size
        return self._data[self._at - size : self._at].decode("latin-1")

    def _key(self) -> Key:
        (kind,) = self._numbers("<I")
        element, count = self._numbers("<IQ") if kind == ARRAY else (kind, 1)
        if element == STRING:
            values: list[Any] = [self._text() for _ in range(count)]
        else:
            values = list(self._numbers(f"<{count}{SCALARS[element]}"))
        return Key(kind, element, values if kind == ARRAY else values[0])

    def _place(self) -> tuple[list[int], int, int]:
        (n_dimensions,) = self._numbers("<I")
        ne = list(self._numbers(f"<{n_dimensions}Q"))
        kind, offset = self._numbers("<IQ")
        return ne, kind, offset


def tensor_bytes(ne: list[int], kind: int) -> int:
    """Size of a tensor's data; for an unknown type as if it were F32."""
    try:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        block, size = 1, 4
    return int(math.prod(ne)) // block * size


def _text_bytes(text: str) -> bytes:
    data = text.encode("latin-1", "replace")
    return struct.pack("<Q", len(data)) + data


def _scalar_bytes(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _text_bytes(str(value))
    code = SCALARS.get(kind, "I")
    if code in "fd":
        try:
            return struct.pack("<" + code, float(value))
        except (OverflowError, ValueError):
            return struct.pack("<" + code, math.inf)
    if isinstance(value, float):
        value = int(value) if math.isfinite(value) else 0
    if isinstance(value, str):
        value = len(value)
    size = struct.calcsize("<" + code)
    return int(value % 256**size).to_bytes(size, "little") if code != "?" else bytes([value % 256])


def _key_bytes(key: Key) -> bytes:
    if key.kind != ARRAY:
        return struct.pack("<I", key.kind) + _scalar_bytes(key.kind, key.value)
    start = struct.pack("<IIQ", ARRAY, key.element, len(key.value))
    return start + b"".join(_scalar_bytes(key.element, value) for value in key.value)


def to_bytes(parts: Parts) -> bytes:
    """Return the file; where a shape asks for absurd amounts, the data ends early."""
    out = [struct.pack("<4sIQQ", b"GGUF", 3, len(parts.tensors), len(parts.keys))]
    out += [_text_bytes(name) + _key_bytes(key) for name, key in parts.keys.items()]
    offset, datas = 0, []
    for name, tensor in parts.tensors.items():
        place = struct.pack(f"<I{len(tensor.ne)}QIQ", len(tensor.ne), *tensor.ne, tensor.kind, offset % 2**64)
        out.append(_text_bytes(name) + place)
        offset += -(-tensor_bytes(tensor.ne, tensor.kind) // ALIGNMENT) * ALIGNMENT
        datas.append(tensor.data + bytes(-len(tensor.data) % ALIGNMENT))
    header = b"".join(out)
    return header + bytes(-len(header) % ALIGNMENT) + b"".join(datas)


def _repeated(data: bytes, size: int) -> bytes:
    size = min(size, MAX_TENSOR_BYTES)
    return (data * (size // len(data) + 1))[:size] if data else bytes(size)


def _set_architecture(parts: Parts, name: str) -> None:
    old = parts.keys["general.architecture"].value if "general.architecture" in parts.keys else ""
    parts.keys = {
        name + key.removeprefix(f"{old}") if key.startswith(f"{old}.") else key: value
        for key, value in parts.keys.items()
    }
    parts.keys["general.architecture"] = Key(STRING, STRING, name)


def _apply_to_key(parts: Parts, what: str, name: str, given: list[Any]) -> None:
    if what == "set":
        kind, value = given
        element, value = value if kind == ARRAY else (kind, value)
        parts.keys[name] = Key(kind, element, value)
        return
    key = parts.keys.get(name)
    if key is None:
        return
    if what == "unset":
        del parts.keys[name]
    elif key.kind == ARRAY and key.value:
        if what == "item":
            key.value[given[0] % len(key.value)] = given[1]
        else:
            key.value = (key.value * (given[0] // len(key.value) + 1))[: given[0]]


def _apply_to_tensor(parts: Parts, what: str, name: str, given: list[Any]) -> None:
    tensor = parts.tensors.get(name)
    if tensor is None:
        return
    if what == "shape":
        ne, kind = given
        parts.tensors[name] = Tensor(ne, kind, _repeated(tensor.data, tensor_bytes(ne, kind)))
    elif what == "rename":
        parts.tensors = {given[0] if old == name else old: each for old, each in parts.tensors.items()}
    elif what == "copy":
        parts.tensors[given[0]] = tensor
    elif what == "drop":
        del parts.tensors[name]
    else:
        parts.tensors[name] = Tensor(tensor.ne, tensor.kind, _repeated(bytes.fromhex(given[0]), len(tensor.data)))


def apply(data: bytes, edits: list[Edit]) -> bytes:
    """Return the file with all edits made."""
    parts = Parts(data)
    raw = [edit for edit in edits if edit[0] in ("bytes", "truncate")]
    for what, name, *given in (edit for edit in edits if edit not in raw):
        if what == "architecture":
            _set_architecture(parts, name)
        elif what in ("set", "item", "resize", "unset"):
            _apply_to_key(parts, what, name, given)
        else:
            _apply_to_tensor(parts, what, name, given)
    out = bytearray(to_bytes(parts))
    for what, at, *given in raw:
        if what == "truncate":
            del out[at:]
        else:
            pattern = bytes.fromhex(given[0])
            out[at : at + len(pattern)] = pattern
    return bytes(out)
