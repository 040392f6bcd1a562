"""Stacks of matrices, not F32, that all tokens go through: those of the heads of multi-head latent attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest

from ggtune import _core
from ggtune._core import Adapter, Model, Trainer

BASE = Path(__file__).parents[1] / "golden/sparse/deepseek3.gguf"
STACKS = ("attn_k_b", "attn_v_b")
TARGETS = ["attn_output"]  # the gradient of the first layer goes through the stacks of the others


def with_stacks(path: Path, stack_type: str, *, as_floats: bool) -> Path:
    """BASE with the stacks rounded to a type, in that type or as floats."""
    reader = gguf.GGUFReader(BASE)
    writer = gguf.GGUFWriter(path, "deepseek2")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        kind, values = tensor.name.split(".")[-2], np.array(tensor.data)
        if kind not in STACKS:
            writer.add_tensor(tensor.name, values)
            continue
        assert values.ndim == 3
        rows = values.reshape(-1, values.shape[-1])
        data = _core.quantize(stack_type, rows)
        if as_floats:
            writer.add_tensor(tensor.name, _core.dequantize(stack_type, data, rows.shape[1]).reshape(values.shape))
        else:
            shape = (*values.shape[:-1], data.shape[-1])
            writer.add_tensor(tensor.name, data.reshape(shape), raw_dtype=gguf.GGMLQuantizationType[stack_type.upper()])
    return gguf_files.finish(writer)


def gradients(path: Path, **options: Any) -> dict[str, np.ndarray]:
    model = Model(str(path))
    adapter = Adapter(model, rank=4, alpha=4.0, targets=TARGETS, seed=1)
    rng = np.random.default_rng(0)
    for name in adapter.tensor_names():
        if name.endswith(".lora_b"):
            adapter.set(name, rng.normal(0, 0.1, adapter.get(name).shape).astype(np.float32))
    with np.load(BASE.with_suffix(".npz")) as file:
        batch = [file[key] for key in ("tokens", "positions", "sequences", "targets", "weights")]
    trainer = Trainer(adapter, context=128, threads=2, precision="f32", **options)
    trainer.accumulate(*batch)
    return trainer.gradients()


@pytest.mark.parametrize("ops", ["cpu", "ggml"])
@pytest.mark.parametrize(("stack_type", "limit"), [("f16", 2e-3), ("bf16", 3e-2)])
def test_gradients_are_those_of_the_same_values_as_floats(
    tmp_path: Path, stack_type: str, limit: float, ops: str
) -> None:
    """But for the inputs of the products, which ggml rounds to the type of the stack."""
    own = gradients(with_stacks(tmp_path / "stacks.gguf", stack_type, as_floats=False), ops=ops)
    floats = gradients(with_stacks(tmp_path / "floats.gguf", stack_type, as_floats=True))
    errors = {name: np.linalg.norm(own[name] - floats[name]) / np.linalg.norm(floats[name]) for name in floats}
    assert max(errors.values()) < limit, errors
