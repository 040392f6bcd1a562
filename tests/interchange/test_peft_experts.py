"""Experts in PEFT adapters: as PEFT's parameters (scripts/check_peft_experts.py), and as a module for each expert."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from architectures import files
from ggtune import _core
from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.adapter_file import AdapterFile, read_adapter, write_adapter
from ggtune.gguf.merge import merge_adapters
from ggtune.interchange.peft import export_peft, import_peft
from ggtune.interchange.peft_experts import GATE, GATE_UP, UP, Stack, from_parameter, fused, halves, to_parameter

GOLDEN = Path(__file__).parents[1] / "golden" / "peft-experts"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
PREFIX = "base_model.model."
Arrays = dict[str, NDArray[np.float32]]


def base_of(name: str) -> str:
    return str(GOLDEN / name / "base.gguf")


def largest_difference(model: str, name: str, adapter: Path | None = None) -> float:
    """Of llama_decode's log-probabilities from PEFT's."""
    loaded = _core.Model(model)
    path = None if adapter is None else str(adapter)
    with np.load(GOLDEN / name / "log_probs.npz") as numbers:
        worst = 0.0
        for sequence in np.unique(numbers["sequences"]):
            own = numbers["sequences"] == sequence
            tokens = np.append(numbers["tokens"][own], numbers["targets"][own][-1])
            found = _core.decode_log_probs(loaded, tokens, adapter_path=path)
            worst = max(worst, float(np.abs(found - numbers["log_probs"][own]).max()))
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_import_computes_what_peft_computes(name: str, tmp_path: Path) -> None:
    content = import_peft(GOLDEN / name, base_of(name), tmp_path / "adapter.gguf")
    kinds = {base.split(".")[2] for base in content.bases}
    assert kinds == {"attn_q", "attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
    assert largest_difference(base_of(name), name, tmp_path / "adapter.gguf") < 1e-4
    assert largest_difference(base_of(name), name) > 1  # an adapter that changes nothing must not pass
    merge_adapters(base_of(name), [(str(tmp_path / "adapter.gguf"), 1.0)], tmp_path / "merged.gguf", outtype="f32")
    assert largest_difference(str(tmp_path / "merged.gguf"), name) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_export_gives_back_what_was_imported(name: str, tmp_path: Path) -> None:
    import_peft(GOLDEN / name, base_of(name), tmp_path / "adapter.gguf")
    export_peft(str(tmp_path / "adapter.gguf"), base_of(name), tmp_path / "folder")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (GOLDEN / name, tmp_path / "folder"))
    assert before.keys() == after.keys()
    given, written = (
        json.loads((path / "adapter_config.json").read_text()) for path in (GOLDEN / name, tmp_path / "folder")
    )
    scale = given["alpha_pattern"]["experts.down_proj"] / given["lora_alpha"]  # is folded into B
    for tensor, values in before.items():
        is_down = re.search(r"experts\.lora_B", tensor) is not None
        np.testing.assert_allclose(after[tensor], values * (scale if is_down else 1), rtol=1e-6, err_msg=tensor)
    assert sorted(given["target_parameters"]) == sorted(
        {re.sub(r"model\.layers\.\d+\.", "", parameter) for parameter in written["target_parameters"]}
    )
    assert written["alpha_pattern"] == {}
    for name_, rank in written["rank_pattern"].items():
        assert rank == {"down_proj": 2, "weight": 1}[name_.rpartition(".")[2]]


def random_adapter(path: Path, base: str, *, kinds: set[str], rank: int = 3, alpha: float = 6.0) -> AdapterFile:
    model, rng, tensors = _core.Model(base, header_only=True), np.random.default_rng(0), {}
    for linear in model.linears():
        if linear.kind in kinds:
            tensors[linear.name + ".lora_a"] = rng.normal(size=(linear.n_mat, rank, linear.n_in))
            tensors[linear.name + ".lora_b"] = rng.normal(size=(linear.n_mat, linear.n_out, rank))
    as_float = {name: values.astype(np.float32) for name, values in tensors.items()}
    content = AdapterFile(model.architecture, alpha, as_float)
    write_adapter(path, content)
    return content


def products(content: AdapterFile) -> Arrays:
    """What an adapter adds to each of its tensors."""
    found = {}
    for base in content.bases:
        scale = content.alpha / content.rank_of(base) if content.alpha else 1.0
        found[base] = scale * content.tensors[base + ".lora_b"] @ content.tensors[base + ".lora_a"]
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kinds", [{GATE, UP, "ffn_down_exps"}, {UP}, {GATE, "ffn_down_exps"}, {"ffn_down_exps"}])
@pytest.mark.parametrize("alpha", [6.0, 0.0])
def test_a_round_trip_keeps_the_products(name: str, kinds: set[str], alpha: float, tmp_path: Path) -> None:
    """Of gate and up with an A each, too: PEFT has one for both, of their ranks together."""
    own = random_adapter(tmp_path / "own.gguf", base_of(name), kinds=kinds, alpha=alpha)
    export_peft(str(tmp_path / "own.gguf"), base_of(name), tmp_path / "folder")
    again = import_peft(tmp_path / "folder", base_of(name), tmp_path / "again.gguf")
    expected, found = products(own), products(again)
    assert expected.keys() <= found.keys()
    for base, values in found.items():
        np.testing.assert_allclose(values, expected.get(base, 0 * values), rtol=1e-4, atol=1e-4)


def folder_of_modules(path: Path, pairs: dict[str, tuple[int, int, int]], **config: Any) -> dict[str, Any]:
    """A folder with a pair (rank, n_in, n_out) for each module."""
    path.mkdir()
    rng, tensors = np.random.default_rng(1), {}
    for module, (rank, n_in, n_out) in pairs.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = rng.normal(size=(rank, n_in)).astype(np.float32)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = rng.normal(size=(n_out, rank)).astype(np.float32)
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return tensors


@pytest.mark.parametrize("names", [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")])
def test_a_module_for_each_expert(names: tuple[str, str, str], tmp_path: Path) -> None:
    """Experts that are left out get nothing, other ranks and scales are folded in."""
    base = base_of("qwen3moe")
    shapes = {linear.kind: linear for linear in _core.Model(base, header_only=True).linears() if linear.routed}
    kinds = dict(zip(names, (GATE, UP, "ffn_down_exps"), strict=True))
    pairs = {
        f"model.layers.1.mlp.experts.{expert}.{part}": (
            4 if (expert, part) == (2, names[2]) else 2,
            shapes[kind].n_in,
            shapes[kind].n_out,
        )
        for expert in (0, 2)
        for part, kind in kinds.items()
    }
    special = rf"experts.2.{names[2]}"
    tensors = folder_of_modules(
        tmp_path / "folder", pairs, rank_pattern={special: 4}, alpha_pattern={special: 2, names[0]: 5}
    )
    content = import_peft(tmp_path / "folder", base, tmp_path / "adapter.gguf")
    assert {content.rank_of(f"blk.1.{kind}.weight") for kind in (GATE, UP)} == {2}
    assert content.rank_of("blk.1.ffn_down_exps.weight") == 4
    found = products(content)
    assert found.keys() == {f"blk.1.{kind}.weight" for kind in kinds.values()}
    for part, kind in kinds.items():
        for expert in range(4):
            module = f"{PREFIX}model.layers.1.mlp.experts.{expert}.{part}"
            expected = np.zeros_like(found[f"blk.1.{kind}.weight"][expert])
            if expert in (0, 2):
                is_special = expert == 2 and part == names[2]
                scale = 2 / 4 if is_special else (5 if part == names[0] else 8) / 2
                expected = scale * tensors[module + ".lora_B.weight"] @ tensors[module + ".lora_A.weight"]
            np.testing.assert_allclose(found[f"blk.1.{kind}.weight"][expert], expected, rtol=1e-5, atol=1e-5)


def test_a_base_with_gate_and_up_in_one(tmp_path: Path) -> None:
    model = _core.Model(str(files.write_model(tmp_path, "qwen3next+experts")), header_only=True)
    (linear,) = [each for each in model.linears() if each.name == "blk.0.ffn_gate_up_exps.weight"]
    rng = np.random.default_rng(0)
    gate, up = (
        Stack(
            rng.normal(size=(linear.n_mat, 2, linear.n_in)).astype(np.float32),
            rng.normal(size=(linear.n_mat, linear.n_out // 2, 2)).astype(np.float32),
            scale,
        )
        for scale in (2.0, 3.0)
    )
    both = fused(gate, up, interleaved=False)
    assert (both.rank, both.b.shape[1]) == (4, linear.n_out)
    expected = np.concatenate([gate.scale * gate.b @ gate.a, up.scale * up.b @ up.a], axis=1)
    np.testing.assert_allclose(both.scale * both.b @ both.a, expected, rtol=1e-4, atol=1e-4)
    assert fused(gate, Stack(gate.a, up.b, 2.0), interleaved=False).rank == 2
    turns = fused(gate, up, interleaved=True)
    for part, one in zip(halves(turns, interleaved=True), (gate, up), strict=True):
        np.testing.assert_allclose(part.scale * part.b @ part.a, one.scale * one.b @ one.a, rtol=1e-4, atol=1e-4)


def test_the_layout_is_pefts() -> None:
    """By the sum that PEFT computes: ``einsum("o r e, e r i -> e o i", B, A)``."""
    rng = np.random.default_rng(0)
    n_expert, rank, n_in, n_out = 3, 2, 5, 7
    a, b = rng.normal(size=(n_expert * rank, n_in)), rng.normal(size=(n_out, rank * n_expert))
    as_float = a.astype(np.float32), b.astype(np.float32)
    expected = np.einsum("ore,eri->eoi", b.reshape(n_out, rank, n_expert), a.reshape(n_expert, rank, n_in))
    stack_a, stack_b = from_parameter(*as_float, n_expert)
    np.testing.assert_allclose(stack_b @ stack_a, expected, rtol=1e-4, atol=1e-5)
    for there, back in zip(as_float, to_parameter(stack_a, stack_b), strict=True):
        np.testing.assert_array_equal(there, back)


def refused(folder: Path, base: str) -> str:
    with pytest.raises(GgtuneError) as caught:
        import_peft(folder, base, folder / "adapter.gguf")
    return str(caught.value)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    base = base_of("qwen3moe")
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / "qwen3moe", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {}}))
    assert "model.layers.0.mlp.gate has A (1, 32) and B (4, 1); by adapter_config.json its rank is 4" in refused(
        folder, base
    )
    (folder / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {"gate.weight": 1}}))
    assert "mlp.experts.down_proj A (8, 24) and B (32, 8); by adapter_config.json its rank is 4" in refused(
        folder, base
    )
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_parameters": "experts"}))
    assert "target_parameters have to be names" in refused(folder, base)
    assert "no weight of its own: model.layers.0.mlp.experts" in refused(
        GOLDEN / "qwen3moe", str(GOLDEN.parent / "qwen3.gguf")
    ).replace("model.layers.0.mlp.gate, ", "")
    folder_of_modules(tmp_path / "more", {"model.layers.0.mlp.experts.4.up_proj": (2, 32, 24)})
    assert "no weight of its own: model.layers.0.mlp.experts.4.up_proj" in refused(tmp_path / "more", base)
    folder_of_modules(tmp_path / "wide", {"model.layers.0.mlp.experts.0.up_proj": (2, 64, 24)})
    assert "experts.0.up_proj is 64 to 24 in it and 32 to 24 in the base" in refused(tmp_path / "wide", base)


def test_export_of_experts_that_no_form_is_known_for(tmp_path: Path) -> None:
    base = str(files.write_model(tmp_path, "granite+experts"))
    random_adapter(tmp_path / "own.gguf", base, kinds={UP})
    with pytest.raises(GgtuneError, match=r"adapts blk\.0\.ffn_up_exps\.weight: ggtune doesn't know the experts"):
        export_peft(str(tmp_path / "own.gguf"), base, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert GATE_UP not in {base.split(".")[2] for base in read_adapter(tmp_path / "own.gguf").bases}


def test_not_finite(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / "qwen3moe", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "experts.lora_A" in name)
    tensors[name][0, 0] = np.nan
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="experts has values that are not finite"):
        import_peft(folder, base_of("qwen3moe"), tmp_path / "adapter.gguf")
