"""Headers that a reader without checks would crash on, hang in, or fill the memory with."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import ggtune
from ggtune.demo import MODEL
from ggtune.errors import ModelError
from ggtune.gguf.structure import read_structure

HUGE = 2**62


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(*, version: int = 3, n_tensors: int = 0, n_keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(shape: tuple[int, ...], *, kind: int = 0, offset: int = 0, name: str = "t") -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BAD = {
    "empty": b"",
    "no header": b"GGUF",
    "version": header(version=1),
    "endless keys": header(n_keys=HUGE),
    "endless tensors": header(n_tensors=HUGE),
    "endless text": header(n_keys=1) + struct.pack("<Q", HUGE),
    "endless array of numbers": header(n_keys=1) + key("a", 9, struct.pack("<IQ", 4, HUGE)),
    "endless array of texts": header(n_keys=1) + key("a", 9, struct.pack("<IQ", 8, HUGE)),
    "an array of texts that ends too early": header(n_keys=1)
    + key("a", 9, struct.pack("<IQ", 8, 3) + text("x") + text("y")),
    "a text of an array that is too long": header(n_keys=1) + key("a", 9, struct.pack("<IQQ", 8, 1, 64)),
    "array of empty arrays": header(n_keys=1) + key("a", 9, struct.pack("<IQ", 9, HUGE)),
    "arrays all the way down": header(n_keys=1) + key("a", 9, struct.pack("<IQ", 9, 1) * 1000),
    "unknown value": header(n_keys=1) + key("a", 13, b""),
    "key twice": header(n_keys=2) + key("a", 4, bytes(4)) * 2,
    "key that is no text": header(n_keys=1) + struct.pack("<Q", 1) + b"\xff" + bytes(8),
    "alignment 0": header(n_keys=1) + key("general.alignment", 4, bytes(4)),
    "alignment 3": header(n_keys=1) + key("general.alignment", 4, struct.pack("<I", 3)),
    "alignment as text": header(n_keys=1) + key("general.alignment", 8, text("32")),
    "no dimensions": header(n_tensors=1) + tensor(()),
    "five dimensions": header(n_tensors=1) + tensor((1, 1, 1, 1, 1)) + bytes(64),
    "a size that overflows": header(n_tensors=1) + tensor((2**32, 2**32)) + bytes(64),
    "an offset that overflows": header(n_tensors=1) + tensor((4,), offset=2**64 - 32) + bytes(64),
    "odd offset": header(n_tensors=1) + tensor((4,), offset=1) + bytes(64),
    "unknown type": header(n_tensors=1) + tensor((4,), kind=999) + bytes(64),
    "half a block": header(n_tensors=1) + tensor((33,), kind=2) + bytes(64),
    "no values": header(n_tensors=1) + tensor((0,)) + bytes(64),
    "tensor twice": header(n_tensors=2) + tensor((4,)) * 2 + bytes(128),
    "no data": header(n_tensors=1) + tensor((4,)),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_header_that_can_not_be_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD[name])
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        read_structure(path)


def test_whole_files_pass(tmp_path: Path) -> None:
    read_structure(MODEL)
    path = tmp_path / "good.gguf"
    path.write_bytes(header(n_tensors=1, n_keys=1) + key("a", 9, struct.pack("<IQ", 8, 1) + text("x")) + tensor((4,)))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(-size % 32 + 16))
    read_structure(path)


def test_where_what_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    keys = key("ggtune.system", 8, text("Be brief.")) + key("ggtune.template", 8, text("x").replace(b"x", b"\xff"))
    keys += key("general.name", 8, text("none of ggtune's")) + key("ggtune.number", 4, bytes(4))
    start = header(n_tensors=2, n_keys=4) + keys + tensor((4,), name="a") + tensor((8,), name="b", offset=32)
    n_header = -(-len(start) // 32) * 32
    path.write_bytes(start.ljust(n_header, b"\0") + bytes(64))
    found = read_structure(path)
    places = [(tensor.name, tensor.shape, tensor.offset, tensor.n_bytes) for tensor in found.tensors]
    assert (found.data_offset, places) == (n_header, [("a", (4,), n_header, 16), ("b", (8,), n_header + 32, 32)])
    assert found.ggtune_texts == {"system": "Be brief."}  # what is not UTF-8 is none


def test_it_sees_what_the_reader_sees() -> None:
    reader = gguf.GGUFReader(MODEL)
    found = read_structure(MODEL)
    assert found.data_offset == reader.data_offset
    assert [(t.name, t.type_name, t.shape, t.offset, t.n_bytes) for t in found.tensors] == [
        (t.name, t.tensor_type.name, tuple(t.shape), t.data_offset, t.n_bytes) for t in reader.tensors
    ]
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {*found.values, *found.arrays} == set(fields)
    assert all(value == fields[key].contents() for key, value in found.values.items())
    tokens, kinds = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
    assert [raw.decode() for raw in found.texts(tokens)] == fields[tokens].contents()
    assert found.numbers(kinds) == fields[kinds].contents()
    assert (found.numbers("llama.block_count"), found.numbers(tokens)) == ([found.number("llama.block_count")], [])
    for key in (kinds, "general.architecture", "no.such.key"):  # no arrays of strings
        assert list(found.texts(key)) == []


def test_floats(tmp_path: Path) -> None:
    """The values of a tensor, of NumPy shape, as gguf-py's writer lays them down."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("a", matrix)
    writer.add_tensor("b", (matrix / 4).astype(np.float16))
    writer.add_tensor("c", np.arange(3, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_structure(path)
    a, b, c = found.tensors
    assert np.array_equal(found.floats(a), matrix)
    assert np.array_equal(found.floats(b), matrix / 4)
    assert found.floats(b).dtype == np.float32
    with pytest.raises(ModelError, match="tensor c is I32, not F32 or F16"):
        found.floats(c)
    path.write_bytes(path.read_bytes()[: a.offset + 8])
    with pytest.raises(ModelError, match="has become shorter"):
        found.floats(a)


def test_it_is_the_only_reader() -> None:
    package = Path(ggtune.__file__).parent
    own = [path for path in package.rglob("*.py") if "_vendor" not in path.parts]  # llama.cpp's converter has its own
    assert not [path for path in own if "GGUFReader" in path.read_text()]


def test_single_values(tmp_path: Path) -> None:
    numbers = [(0, "B", 255), (1, "b", -3), (2, "H", 65535), (3, "h", -5), (4, "I", 2**32 - 1), (5, "i", -7)]
    numbers += [(6, "f", 0.5), (7, "?", True), (10, "Q", 2**64 - 1), (11, "q", -9), (12, "d", 0.1)]
    keys = b"".join(key(letter, kind, struct.pack("<" + letter, value)) for kind, letter, value in numbers)
    keys += key("text", 8, text("x")) + key("bytes", 8, text("x").replace(b"x", b"\xff"))
    path = tmp_path / "m.gguf"
    path.write_bytes(header(n_keys=len(numbers) + 2) + keys)
    found = read_structure(path)
    assert found.values == {letter: value for _, letter, value in numbers} | {"text": "x", "bytes": b"\xff"}
    assert (found.text("text"), found.text("bytes"), found.text("I"), found.text("none")) == ("x", "", "", "")
    assert (found.number("h"), found.number("d"), found.number("?"), found.number("text")) == (-5, 0.1, None, None)
