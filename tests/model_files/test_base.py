"""Fingerprints: of a base, of an adapter, and what they say of each other."""

import dataclasses
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from ggtune._core import Adapter, Model, merge
from ggtune.demo import MODEL
from ggtune.errors import ModelError
from ggtune.gguf.adapter_file import AdapterFile, adapter_content, read_adapter, write_adapter
from ggtune.gguf.base import adapter_fingerprint, check_base, merged_adapters
from ggtune.gguf.io import model_fingerprint


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    live = Adapter(Model(str(MODEL)), rank=1, alpha=1.0, targets=["attn_q"])
    for name in live.tensor_names():
        live.set(name, np.full_like(live.get(name), 0.1))
    path = tmp_path / "adapter.gguf"
    write_adapter(path, adapter_content(live, {"base_fingerprint": model_fingerprint(MODEL), "step": "4"}))
    return path


@pytest.fixture
def sibling(tmp_path: Path) -> Path:
    """The same model but for one weight."""
    path = tmp_path / "sibling.gguf"
    shutil.copyfile(MODEL, path)
    tensor = next(t for t in gguf.GGUFReader(MODEL).tensors if t.name == "blk.3.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 100)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return path


def test_its_own_base_under_any_name(adapter: Path, tmp_path: Path) -> None:
    shutil.copyfile(MODEL, tmp_path / "copy.gguf")
    assert check_base(adapter, tmp_path / "copy.gguf") == []


def test_another_base_of_the_same_shape(adapter: Path, sibling: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter.gguf was trained on another base than .*sibling.gguf.*--force"):
        check_base(adapter, sibling)
    (warning,) = check_base(adapter, sibling, force=True)
    assert warning.startswith("warning: ")
    assert "another base" in warning


def test_files_of_other_programs_say_nothing_of_their_base(adapter: Path, sibling: Path) -> None:
    content = read_adapter(adapter)
    write_adapter(adapter, dataclasses.replace(content, notes={}))
    assert check_base(adapter, sibling) == []


def test_an_adapter_that_is_merged_already(adapter: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.gguf"
    metadata = {"ggtune.merged_adapter": f"{'0' * 64},{adapter_fingerprint(adapter)}"}
    merge(str(MODEL), [(str(adapter), 1.0)], str(merged), metadata=metadata)
    assert merged_adapters(merged) == ["0" * 64, adapter_fingerprint(adapter)]
    (warning,) = check_base(adapter, merged)
    assert "is merged into" in warning
    other = read_adapter(adapter)
    write_adapter(adapter, dataclasses.replace(other, alpha=2.0))
    with pytest.raises(ModelError, match="another base"):
        check_base(adapter, merged)


def test_what_makes_an_adapter_another_one() -> None:
    tensors = {"b.lora_a": np.ones((1, 2), np.float32), "b.lora_b": np.ones((2, 1), np.float32)}
    one = AdapterFile("llama", 1.0, tensors)
    same = AdapterFile("llama", 1.0, dict(reversed(tensors.items())), {"step": "4"})
    assert adapter_fingerprint(one) == adapter_fingerprint(same)
    others = [
        dataclasses.replace(one, alpha=2.0),
        dataclasses.replace(one, tensors={**tensors, "b.lora_b": np.zeros((2, 1), np.float32)}),
        dataclasses.replace(one, tensors={name.replace("b.", "c."): values for name, values in tensors.items()}),
    ]
    assert len({adapter_fingerprint(content) for content in [one, *others]}) == 4
