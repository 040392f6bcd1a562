from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.adapter_file import AdapterFile, check_fits, read_adapter, write_adapter


@dataclass
class Linear:
    name: str
    n_in: int
    n_out: int
    n_mat: int = 1


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]


@dataclass
class Model:
    architecture: str = "llama"
    path: str = "base.gguf"

    def linears(self) -> list[Linear]:
        return [Linear("blk.0.attn_q.weight", 5, 3), Linear("blk.0.ffn_up_exps.weight", 5, 3, 4)]

    def tensors(self) -> list[Tensor]:
        return [Tensor("blk.0.attn_kv_b.weight", (3, 5))]


def content(base: str = "blk.0.attn_q.weight", n_in: int = 5) -> AdapterFile:
    random = np.random.default_rng(0)
    tensors = {
        f"{base}.lora_a": random.normal(size=(2, n_in)).astype(np.float32),
        f"{base}.lora_b": random.normal(size=(3, 2)).astype(np.float32),
    }
    return AdapterFile("llama", 4.0, tensors, {"template": "llama2", "system": ""})


def test_the_file_is_what_llama_cpp_reads(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.gguf", content())
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {key: reader.get_field(key).contents() for key in reader.fields if not key.startswith("GGUF.")}  # type: ignore[union-attr]
    assert keys == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
        "ggtune.template": "llama2",
        "ggtune.system": "",  # known to be none
    }
    assert {t.name: [int(n) for n in t.shape] for t in reader.tensors} == {
        "blk.0.attn_q.weight.lora_a": [5, 2],  # ggml's ne = [in, r]
        "blk.0.attn_q.weight.lora_b": [2, 3],
    }


def test_round_trip(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.gguf", content())
    read = read_adapter(tmp_path / "a.gguf")
    assert (read.rank, read.alpha, read.bases, dict(read.notes)) == (
        2,
        4.0,
        ["blk.0.attn_q.weight"],
        {"template": "llama2", "system": ""},
    )
    for name, values in content().tensors.items():
        np.testing.assert_array_equal(read.tensors[name], values)


def stack(n_mat: int = 4, n_mat_b: int | None = None) -> AdapterFile:
    random = np.random.default_rng(0)
    tensors = {
        "blk.0.ffn_up_exps.weight.lora_a": random.normal(size=(n_mat, 2, 5)).astype(np.float32),
        "blk.0.ffn_up_exps.weight.lora_b": random.normal(size=(n_mat_b or n_mat, 3, 2)).astype(np.float32),
    }
    return AdapterFile("llama", 4.0, tensors)


def test_a_stack_of_pairs(tmp_path: Path) -> None:
    written, base = stack(), "blk.0.ffn_up_exps.weight"
    write_adapter(tmp_path / "a.gguf", written)
    shapes = {t.name: [int(n) for n in t.shape] for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert shapes == {base + ".lora_a": [5, 2, 4], base + ".lora_b": [2, 3, 4]}
    read = read_adapter(tmp_path / "a.gguf")
    assert (read.rank, read.shape_of(base)) == (2, (5, 3, 4))
    for name, values in written.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], values)


def test_a_stack_of_one_is_a_plain_pair(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.gguf", stack(1))
    read = read_adapter(tmp_path / "a.gguf")
    assert {values.ndim for values in read.tensors.values()} == {2}
    assert read.shape_of(read.bases[0]) == (5, 3)


def test_stacks_of_different_size_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.gguf", stack(4, 3))
    with pytest.raises(ModelError, match="don't fit each other"):
        read_adapter(tmp_path / "a.gguf")


def test_a_fitting_adapter_passes() -> None:
    check_fits("a.gguf", content(), Model())  # type: ignore[arg-type]
    check_fits("a.gguf", stack(), Model())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("adapter", "text"),
    [
        (replace(content(), architecture="gemma"), "'gemma'"),
        (content(base="blk.9.attn_q.weight"), "no linear blk.9.attn_q.weight"),
        (content(n_in=7), "7 to 3 in it and 5 to 3"),
        (content(base="blk.0.attn_kv_b.weight"), "llama.cpp applies no adapter to blk.0.attn_kv_b.weight"),
        (content(base="blk.0.ffn_up_exps.weight"), "5 to 3 in it and 4 times 5 to 3 in the model"),
        (stack(3), "3 times 5 to 3 in it and 4 times 5 to 3 in the model"),
    ],
)
def test_an_adapter_of_another_model_is_named(adapter: AdapterFile, text: str) -> None:
    with pytest.raises(ModelError, match="adapter of another model") as caught:
        check_fits("a.gguf", adapter, Model())  # type: ignore[arg-type]
    assert text in str(caught.value)


@pytest.mark.parametrize("left_out", ["lora_a", "lora_b"])
def test_half_a_pair_is_refused(tmp_path: Path, left_out: str) -> None:
    whole = content()
    tensors = {name: values for name, values in whole.tensors.items() if not name.endswith(left_out)}
    write_adapter(tmp_path / "a.gguf", replace(whole, tensors=tensors))
    with pytest.raises(ModelError, match="not one of a pair"):
        read_adapter(tmp_path / "a.gguf")


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        read_adapter(tmp_path / "m.gguf")


def test_an_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GgtuneError, match="can't write"):
        write_adapter(tmp_path / "file" / "a.gguf", content())
