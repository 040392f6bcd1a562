"""check_gguf: damaged and unusual files give a ModelError with a reason, never a crash."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import VOCABULARY, model_arrays, write_adapter, write_model
from refused_models import write_recurrent

from ggtune import _core
from ggtune.errors import ModelError

N_MUTATIONS = 3000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.gguf")


def small_model(path: Path) -> Path:
    """As few bytes as a whole model can have, so that most of a random change hits the header."""
    names = ("token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight")
    arrays = {name: array[:8, :32] if array.ndim > 1 else array[:32] for name, array in model_arrays().items()}
    strings = {"llama.rope.scaling.type": "linear", "general.description": "x" * 40}
    numbers = {"general.alignment": 32, "llama.rope.dimension_count": 64, "split.count": 1}
    return write_model(
        path,
        {name: arrays[name] for name in names},
        types={"blk.0.attn_q.weight": "q8_0"},
        strings=strings,
        numbers=numbers,
        vocabulary=VOCABULARY[:16],
    )


def reason(path: Path) -> str:
    """The message without the path that it starts with."""
    with pytest.raises(ModelError) as caught:
        _core.check_gguf(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def header(*, version: int = 3, n_tensors: int = 0, n_keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor(name: str = "t", ne: tuple[int, ...] = (32,), ggml_type: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(ne)}q", len(ne), *ne)
    return text(name) + dims + struct.pack("<IQ", ggml_type, offset)


def test_whole_models(model: Path, tmp_path: Path) -> None:
    _core.check_gguf(str(model))
    _core.check_gguf(str(small_model(tmp_path / "small.gguf")))


def test_version_2_is_read(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "v2.gguf"
    data = bytearray(model.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    _core.check_gguf(str(path))


def test_vocabulary_alone(tmp_path: Path) -> None:
    path = write_model(tmp_path / "vocabulary.gguf", {})
    assert "no tensors" in reason(path)
    _core.check_gguf(str(path), vocab_only=True)


HEADERS: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"GG", "not a GGUF file"),
    (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    (b"algg" + bytes(100), "not GGUF"),
    (b"GGUF", "truncated"),
    (header(version=1), "version 1"),
    (header(version=4), "version 4"),
    (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    (header(n_keys=2**40), "damaged"),
    (header(n_tensors=2**63), "damaged"),
    (header(n_keys=1) + text("key"), "truncated"),
    (header(n_keys=1) + text("key") + struct.pack("<I", 13) + bytes(64), "unknown type 13"),
    (header(n_keys=1) + text("key") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "unknown type 9"),
    (header(n_keys=1) + text("key") + struct.pack("<IIQ", 9, 0, 2**62) + bytes(64), "elements"),
    (header(n_keys=1) + text("key") + struct.pack("<IQ", 8, 2**63) + bytes(64), "a string of"),
    (header(n_keys=1) + text("") + struct.pack("<I", 0) + bytes(64), "key 0 is called ''"),
    (header(n_keys=2) + 2 * (text("key") + struct.pack("<IB", 0, 1)), "there twice"),
    (header(n_keys=1) + text("general.alignment") + struct.pack("<II", 4, 24), "power of two"),
    (header(n_keys=1) + text("general.alignment") + struct.pack("<IQ", 10, 32), "power of two"),
    (header(n_tensors=1) + tensor(name="t" * 64) + bytes(256), "is called"),
    (header(n_tensors=1) + tensor(name="") + bytes(256), "is called"),
    (header(n_tensors=2) + tensor() + tensor(offset=128) + bytes(512), "there twice"),
    (header(n_tensors=1) + tensor(ne=()) + bytes(256), "0 dimensions"),
    (header(n_tensors=1) + tensor(ne=(1, 1, 1, 1, 1)) + bytes(256), "5 dimensions"),
    (header(n_tensors=1) + tensor(ne=(32, 0)) + bytes(256), "the shape [32, 0]"),
    (header(n_tensors=1) + tensor(ne=(-32,)) + bytes(256), "the shape [-32]"),
    (header(n_tensors=1) + tensor(ne=(2**32, 2**32)) + bytes(256), "the shape"),
    (header(n_tensors=1) + tensor(ggml_type=4) + bytes(256), "no longer reads"),
    (header(n_tensors=1) + tensor(ggml_type=1000) + bytes(256), "unknown type 1000"),
    (header(n_tensors=1) + tensor(ggml_type=12) + bytes(256), "not a multiple of the 256"),
    (header(n_tensors=1) + tensor(offset=32) + bytes(256), "0 is expected"),
    (header(n_tensors=2) + tensor() + tensor(name="u", offset=64) + bytes(256), "128 is expected"),
    (header(n_tensors=1) + tensor(ne=(2**40,)) + bytes(256), "truncated"),
    (header(), "general.architecture is missing"),
]


@pytest.mark.parametrize(("data", "message"), HEADERS)
def test_damaged_headers(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    assert message in reason(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "no such file" in reason(tmp_path / "missing.gguf")
    assert "is a folder" in reason(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": None}, "no tokenizer"),
        ({"vocabulary": ["<unk>", "<s>", "</s>", "<s>"]}, "token 3 is there twice"),
        ({"vocabulary": ["<unk>", "", "[EMPTY_1]"]}, "token 2 is there twice"),
        ({"vocabulary": ["<unk>"]}, "BOS"),
        ({"numbers": {"split.count": 2}}, "llama-gguf-split --merge"),
        ({"numbers": {"llama.expert_count": 4}}, "contradict"),
        ({"numbers": {"llama.expert_used_count": 2}}, "contradict"),
        ({"numbers": {"llama.nextn_predict_layers": 9}}, "nextn_predict_layers is 9"),
        ({"numbers": {"llama.rope.dimension_count": 63}}, "RoPE"),
        ({"numbers": {"llama.attention.key_length": 0}}, "RoPE"),
        ({"strings": {"llama.rope.scaling.type": "magic"}}, "unknown RoPE scaling 'magic'"),
    ],
)
def test_models_that_llama_cpp_would_abort_on(options: dict, message: str, tmp_path: Path) -> None:
    assert message in reason(write_model(tmp_path / "model.gguf", **options))


@pytest.mark.parametrize(
    ("key", "old", "new", "message"),
    [
        ("llama.block_count", 2, 0, "has to be positive"),
        ("llama.block_count", 2, 513, "512 layers"),
        ("llama.context_length", 128, 0, "has to be positive"),
        ("llama.attention.head_count", 4, 3, "no multiple of the 3 heads"),
        ("llama.attention.head_count_kv", 2, 0, "has to divide"),
        ("llama.attention.head_count_kv", 2, 3, "has to divide"),
    ],
)
def test_hyperparameters(model: Path, tmp_path: Path, key: str, old: int, new: int, message: str) -> None:
    before = text(key) + struct.pack("<II", 4, old)
    data = model.read_bytes()
    assert data.count(before) == 1
    path = tmp_path / "model.gguf"
    if key.endswith("head_count"):  # the key of the KV heads has to divide these first
        data = data.replace(text(f"{key}_kv") + struct.pack("<II", 4, 2), text(f"{key}_kv") + struct.pack("<II", 4, 1))
    path.write_bytes(data.replace(before, text(key) + struct.pack("<II", 4, new)))
    assert message in reason(path)


def test_no_dimension_to_rotate_is_no_damage(tmp_path: Path) -> None:
    """It is what models without RoPE say; that llama rotates is llama.cpp's to know."""
    path = write_model(tmp_path / "model.gguf", numbers={"llama.rope.dimension_count": 0})
    _core.check_gguf(str(path))
    with pytest.raises(ModelError, match="n_rot"):
        _core.Model(str(path))
    _core.Model(str(write_recurrent(tmp_path / "mamba.gguf", numbers={"mamba.rope.dimension_count": 0})))


def test_missing_and_unusable_parts(model: Path, tmp_path: Path) -> None:
    def renamed(old: str, new: str) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(model.read_bytes().replace(text(old), text(new)))
        return path

    assert "llama.block_count is missing" in reason(renamed("llama.block_count", "llama.block_xxxxx"))
    assert "no tokenizer" in reason(renamed("tokenizer.ggml.tokens", "tokenizer.ggml.xxxxxx"))
    assert "the tokenizer 'worda'" in reason(renamed("llama", "worda"))
    assert "is of type f16" in reason(write_model(tmp_path / "norm.gguf", types={"output_norm.weight": "f16"}))
    adapter = write_adapter(tmp_path / "adapter.gguf", {})
    assert "is an adapter, not a model" in reason(adapter)


def test_small_alignment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(8)
    for key, value in (("block_count", 1), ("context_length", 8), ("embedding_length", 32)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>"])
    writer.add_tensor("token_embd.weight", np.ones((2, 32), np.float32))
    assert "alignment of 8" in reason(gguf_files.finish(writer))


def flip(data: bytearray, rng: np.random.Generator) -> None:
    for at in rng.integers(0, len(data), rng.integers(1, 6)):
        data[at] = rng.integers(0, 256)


def cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[rng.integers(0, len(data)) :]


def large_number(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(4, len(data) - 8))
    numbers = (0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, len(data), len(data) - at)
    data[at : at + 8] = struct.pack("<Q", numbers[rng.integers(0, len(numbers))])


def move(data: bytearray, rng: np.random.Generator) -> None:
    start, to = rng.integers(0, len(data), 2)
    part = data[start : start + rng.integers(1, 64)]
    data[to : to + len(part)] = part


@pytest.mark.parametrize("mutate", [flip, cut, large_number, move])
def test_mutated_files(mutate: Callable[[bytearray, np.random.Generator], None], tmp_path: Path) -> None:
    original = small_model(tmp_path / "small.gguf").read_bytes()
    rng = np.random.default_rng(sum(map(ord, mutate.__name__)))
    path = tmp_path / "mutated.gguf"
    n_refused = 0
    for _ in range(N_MUTATIONS // 4):
        data = bytearray(original)
        mutate(data, rng)
        path.write_bytes(data)
        try:
            _core.check_gguf(str(path))
        except ModelError:  # anything else fails the test
            n_refused += 1
    assert n_refused > N_MUTATIONS // 20
