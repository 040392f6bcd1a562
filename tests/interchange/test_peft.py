"""PEFT adapters in and out, against PEFT's own files and numbers (scripts/make_golden.py)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ggtune import _core
from ggtune.cli import cli
from ggtune.errors import GgtuneError, ModelError
from ggtune.gguf.adapter_file import AdapterFile, load_adapter, read_adapter, write_adapter
from ggtune.gguf.merge import merge_adapters
from ggtune.interchange.peft import export_peft, import_peft
from ggtune.interchange.peft_file import is_peft_folder

GOLDEN = Path(__file__).parents[1] / "golden"
PLAIN = sorted(path.name for path in (GOLDEN / "peft").iterdir() if (GOLDEN / f"{path.name}.npz").exists())
TABLE_OF_GELU = {"falcon", "gemma", "gpt2", "starcoder2"}  # llama_decode looks GELU up in a table of half floats
VARIANTS = {"llama-patterns": "llama", "qwen3-rslora": "qwen3"}
Tensors = dict[str, NDArray[np.float32]]


def base_of(name: str) -> str:
    return str(GOLDEN / f"{VARIANTS.get(name, name)}.gguf")


def golden_numbers(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "peft" / name / "log_probs.npz" if name in VARIANTS else GOLDEN / f"{name}.npz") as file:
        return dict(file)


def assert_log_probs(model: str, numbers: dict[str, np.ndarray], adapter: Path | None, tolerance: float) -> None:
    """llama_decode gives PEFT's log-probability of every target."""
    loaded = _core.Model(model)
    for sequence in np.unique(numbers["sequences"]):
        own = numbers["sequences"] == sequence
        tokens = np.append(numbers["tokens"][own], numbers["targets"][own][-1])
        path = str(adapter) if adapter else None
        actual = _core.decode_log_probs(loaded, tokens, adapter_path=path, threads=2)
        np.testing.assert_allclose(actual, numbers["log_probs"][own], rtol=0, atol=tolerance)


def test_what_the_issue_names_is_there() -> None:
    assert {"llama", "llama3", "qwen2", "gemma", "phi3", "gpt2", "falcon"} <= set(PLAIN)
    assert all((GOLDEN / "peft" / name).is_dir() for name in VARIANTS)


@pytest.mark.parametrize("name", [*PLAIN, *VARIANTS])
def test_import_computes_what_peft_computes(name: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    import_peft(GOLDEN / "peft" / name, base_of(name), adapter)
    numbers = golden_numbers(name)
    assert_log_probs(base_of(name), numbers, adapter, 3e-3 if name in TABLE_OF_GELU else 1e-4)
    # an adapter that changes nothing must not pass
    with pytest.raises(AssertionError):
        assert_log_probs(base_of(name), numbers, None, 0.1)


@pytest.mark.parametrize("name", PLAIN)
def test_live_adapter_of_the_import_computes_what_peft_computes(name: str, tmp_path: Path) -> None:
    import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "adapter.gguf")
    numbers = golden_numbers(name)
    model = _core.Model(base_of(name))
    adapter = load_adapter(tmp_path / "adapter.gguf", model)
    trainer = _core.Trainer(adapter, context=int(numbers["positions"].max()) + 1, threads=2)
    batch = [numbers[key] for key in ("tokens", "positions", "sequences", "targets", "weights")]
    expected = np.where(numbers["weights"] == 0, np.nan, numbers["log_probs"])
    np.testing.assert_allclose(trainer.evaluate(*batch).log_probs, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_import_equals_llama_cpps_converter(name: str, tmp_path: Path) -> None:
    content = import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "adapter.gguf")
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(GOLDEN / f"{name}-lora.gguf").tensors}
    assert content.tensors.keys() == expected.keys()
    for tensor, values in expected.items():
        assert np.array_equal(content.tensors[tensor], values), tensor


@pytest.mark.parametrize("name", [*PLAIN, "qwen3-rslora"])
def test_export_gives_back_what_was_imported(name: str, tmp_path: Path) -> None:
    import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "adapter.gguf")
    export_peft(str(tmp_path / "adapter.gguf"), base_of(name), tmp_path / "folder", base_name="some/model")
    before = load_file(GOLDEN / "peft" / name / "adapter_model.safetensors")
    after = load_file(tmp_path / "folder" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for tensor, values in before.items():
        assert np.array_equal(after[tensor], values), tensor
    given = json.loads((GOLDEN / "peft" / name / "adapter_config.json").read_text())
    written = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "some/model"
    for key in ("r", "target_modules", "fan_in_fan_out", "peft_type", "task_type", "bias"):
        assert written[key] == given[key], key
    scale = given["lora_alpha"] / (given["r"] ** 0.5 if given["use_rslora"] else given["r"])
    assert written["lora_alpha"] / written["r"] == pytest.approx(scale, rel=1e-6)


def test_patterns_survive_a_round_trip(tmp_path: Path) -> None:
    name = "llama-patterns"
    first = import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "first.gguf")
    export_peft(str(tmp_path / "first.gguf"), base_of(name), tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "embed_tokens", "lm_head", "q_proj", "v_proj"]
    assert sorted(config["rank_pattern"].values()) == [2, 2, 6]
    second = import_peft(tmp_path / "folder", base_of(name), tmp_path / "second.gguf")
    assert second.alpha == first.alpha
    for tensor, values in first.tensors.items():
        assert np.array_equal(second.tensors[tensor], values), tensor


def test_alpha_of_zero_is_no_scaling_in_a_gguf(tmp_path: Path) -> None:
    content = import_peft(GOLDEN / "peft" / "llama-patterns", base_of("llama-patterns"), tmp_path / "adapter.gguf")
    write_adapter(tmp_path / "zero.gguf", AdapterFile(content.architecture, 0.0, content.tensors))
    export_peft(str(tmp_path / "zero.gguf"), base_of("llama-patterns"), tmp_path / "folder")
    again = import_peft(tmp_path / "folder", base_of("llama-patterns"), tmp_path / "again.gguf")
    for base in content.bases:
        scale = again.alpha / again.rank_of(base)
        assert np.allclose(again.tensors[base + ".lora_b"] * scale, content.tensors[base + ".lora_b"], rtol=1e-6)


def test_some_layers_are_named_in_full(tmp_path: Path) -> None:
    content = read_adapter(GOLDEN / "gpt2-lora.gguf")
    some = {key: value for key, value in content.tensors.items() if ".attn_output." in key or "blk.1.attn_qkv" in key}
    write_adapter(tmp_path / "some.gguf", AdapterFile("gpt2", 8.0, some))
    export_peft(str(tmp_path / "some.gguf"), base_of("gpt2"), tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    # c_proj is in attention and feed-forward: the name alone would add the other
    assert config["target_modules"] == [
        "transformer.h.0.attn.c_proj",
        "transformer.h.1.attn.c_attn",
        "transformer.h.1.attn.c_proj",
    ]


def test_merge_of_embedding_and_head_computes_what_peft_computes(tmp_path: Path) -> None:
    name = "llama-patterns"
    import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "adapter.gguf")
    merge_adapters(base_of(name), [(str(tmp_path / "adapter.gguf"), 1.0)], tmp_path / "merged.gguf")
    assert_log_probs(str(tmp_path / "merged.gguf"), golden_numbers(name), None, 1e-4)


def test_live_adapter_of_embedding_is_refused(tmp_path: Path) -> None:
    name = "llama-patterns"
    import_peft(GOLDEN / "peft" / name, base_of(name), tmp_path / "adapter.gguf")
    with pytest.raises(GgtuneError, match=r"adapts (output|token_embd)\.weight.*merge it"):
        load_adapter(tmp_path / "adapter.gguf", _core.Model(base_of(name)))


@pytest.mark.parametrize("tensor", ["output.weight", "token_embd.weight"])
def test_tied_output_is_refused(tensor: str, tmp_path: Path) -> None:
    base = base_of("qwen2")
    n_vocab, n_embd = next(t.shape for t in _core.Model(base).tensors() if t.name == "token_embd.weight")
    rows = (n_vocab, 2), (n_embd, 2)
    shapes = rows if tensor == "token_embd.weight" else ((2, n_embd), (n_vocab, 2))
    pair = {f"{tensor}.lora_{side}": np.ones(shape, np.float32) for side, shape in zip("ab", shapes, strict=True)}
    path = tmp_path / "adapter.gguf"
    write_adapter(path, AdapterFile("qwen2", 2.0, pair))
    with pytest.raises(ModelError, match="one and the same tensor"):
        merge_adapters(base, [(str(path), 1.0)], tmp_path / "merged.gguf")
    # the C++ side too, which would otherwise end in an assertion of ggml
    for call in (
        lambda: _core.merge(base, [(str(path), 1.0)], str(tmp_path / "merged.gguf")),
        lambda: _core.decode_log_probs(_core.Model(base), np.arange(3, dtype=np.int32), adapter_path=str(path)),
    ):
        with pytest.raises(ModelError, match="output layer too"):
            call()


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of qwen2's folder with other settings and tensors."""

    def change(settings: dict[str, Any] | None = None, edit: Callable[[Tensors], None] | None = None) -> Path:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(GOLDEN / "peft" / "qwen2", folder)
        config = json.loads((folder / "adapter_config.json").read_text()) | (settings or {})
        (folder / "adapter_config.json").write_text(json.dumps(config))
        tensors = load_file(folder / "adapter_model.safetensors")
        if edit:
            edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return change


def message(folder: Path, base: str = base_of("qwen2")) -> str:
    output = folder.parent / "refused.gguf"
    with pytest.raises(GgtuneError) as caught:
        import_peft(folder, base, output)
    assert not output.exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save: lm_head, embed_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"trainable_token_indices": [1]}, "single tokens"),
        ({"r": 0}, "r above 0"),
        ({"r": 16}, "its rank is 16"),
        ({"lora_alpha": "much"}, "have to be numbers"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
    ],
)
def test_settings_that_a_gguf_adapter_has_not(
    settings: dict[str, Any], expected: str, changed: Callable[..., Path]
) -> None:
    assert expected in message(changed(settings))


def test_tensors_that_a_gguf_adapter_has_not(changed: Callable[..., Path]) -> None:
    layer = "base_model.model.model.layers.0."

    def put(name: str, values: Any) -> Callable[[Tensors], None]:
        return lambda tensors: tensors.update({layer + name: np.asarray(values, np.float32)})

    assert "modules_to_save makes them: model.layers.0.mlp.weight" in message(changed(None, put("mlp.weight", [1.0])))
    assert "trained biases" in message(changed({"bias": "lora_only"}, put("self_attn.q_proj.bias", [0.0, 1.0])))
    assert "no pair" in message(changed(None, lambda t: t.pop(layer + "self_attn.q_proj.lora_A.weight")))
    finite = put("self_attn.q_proj.lora_A.weight", np.full((4, 32), np.nan))
    assert "not finite" in message(changed(None, finite))
    assert "no pairs" in message(changed(None, lambda t: t.clear()))

    def vision(tensors: Tensors) -> None:
        for side, shape in (("A", (4, 32)), ("B", (32, 4))):
            tensors[f"base_model.model.vision_tower.layers.0.fc.lora_{side}.weight"] = np.ones(shape, np.float32)

    assert "no weight of its own: vision_tower.layers.0.fc" in message(changed(None, vision))


def test_all_problems_are_said_at_once(changed: Callable[..., Path]) -> None:
    said = message(changed({"use_dora": True, "modules_to_save": ["score"]}))
    assert "DoRA" in said
    assert "score" in said


def test_zero_biases_and_brain_floats_are_taken(changed: Callable[..., Path], tmp_path: Path) -> None:
    bias = "base_model.model.model.layers.0.self_attn.q_proj.bias"
    folder = changed({"bias": "lora_only"}, lambda t: t.update({bias: np.zeros(32, np.float32)}))
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body, new = b"", {}
    for key, info in header.items():
        if key == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        upper = np.frombuffer(data[8 + size + begin : 8 + size + end], "<u2")[1::2].tobytes()
        new[key] = {"dtype": "BF16", "shape": info["shape"], "data_offsets": [len(body), len(body) + len(upper)]}
        body += upper
    text = json.dumps(new).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    content = import_peft(folder, base_of("qwen2"), tmp_path / "adapter.gguf")
    exact = read_adapter(GOLDEN / "qwen2-lora.gguf").tensors
    for tensor, values in exact.items():
        np.testing.assert_allclose(content.tensors[tensor], values, rtol=2**-7)
        assert not np.array_equal(content.tensors[tensor], values)


def test_changed_embedding_saved_along_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / "peft" / "llama-patterns", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    assert name in tensors
    tensors[name] = tensors[name] + np.float32(0.5)
    save_file(tensors, folder / "adapter_model.safetensors")
    assert "embed_tokens was changed beside its adapter" in message(folder, base_of("llama"))


def test_damaged_folders(changed: Callable[..., Path], tmp_path: Path) -> None:
    folder = changed()
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "damaged or truncated" in message(folder)
    weights.rename(folder / "adapter_model.bin")
    assert "save it as safetensors" in message(folder)
    (folder / "adapter_config.json").write_text("{")
    assert "is not JSON" in message(folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "no configuration" in message(folder)
    assert "can't read" in message(tmp_path / "missing")


def test_adapter_of_another_model(tmp_path: Path) -> None:
    assert "of another model" in message_into(GOLDEN / "peft" / "qwen2", base_of("qwen3"), tmp_path)
    assert "no weight of its own" in message_into(GOLDEN / "peft" / "qwen2", base_of("gpt2"), tmp_path)
    with pytest.raises(ModelError, match="of another model"):
        export_peft(str(GOLDEN / "qwen2-lora.gguf"), base_of("llama"), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def message_into(folder: Path, base: str, output: Path) -> str:
    with pytest.raises(GgtuneError) as caught:
        import_peft(folder, base, output / "adapter.gguf")
    assert not (output / "adapter.gguf").exists()
    return str(caught.value)


def test_folder_of_a_model_is_none_of_an_adapter(changed: Callable[..., Path]) -> None:
    folder = changed()
    (folder / "config.json").write_text("{}")
    assert is_peft_folder(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert not is_peft_folder(folder)


def test_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    adapter, folder = str(tmp_path / "adapter.gguf"), str(tmp_path / "folder")
    golden = str(GOLDEN / "peft" / "llama")
    result = runner.invoke(cli, ["import", golden, "--base", base_of("llama"), "-o", adapter])
    assert result.exit_code == 0, result.output
    assert "14 pairs" in result.output
    result = runner.invoke(cli, ["export-peft", adapter, "--base", base_of("llama"), "-o", folder])
    assert result.exit_code == 0, result.output
    assert (
        load_file(f"{folder}/adapter_model.safetensors").keys()
        == load_file(f"{golden}/adapter_model.safetensors").keys()
    )
    result = runner.invoke(cli, ["import", golden, "-o", adapter])
    assert result.exit_code == 2
    assert "--base" in result.output
    result = runner.invoke(cli, ["export-peft", adapter, "--base", base_of("qwen2"), "-o", folder])
    assert result.exit_code == 1
    assert "another model" in result.output
