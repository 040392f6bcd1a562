"""Hugging Face checkpoints through llama.cpp's converter: what can be checked without torch, and where torch is the
conversion itself."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from ggtune import _core
from ggtune.cli import cli
from ggtune.errors import GgtuneError, ModelError
from ggtune.interchange import checkpoint
from ggtune.interchange.checkpoint import converter_folder, import_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
SENTENCES = ["the cat sat on the mat", "a dog ran to the red barn", "she sat and the rain ran on"]
HAS_CONVERTER = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "sentencepiece"))
needs_converter = pytest.mark.skipif(not HAS_CONVERTER, reason="needs torch and transformers: pip install '.[import]'")


def write_llama(folder: Path, **changes: object) -> Path:
    """A llama checkpoint with the weights of tests/golden/llama.gguf and its tokenizer, in Hugging Face's layout."""
    from ggtune.interchange.peft_layout import Heads, layout_of

    folder.mkdir()
    reader = gguf.GGUFReader(GOLDEN / "llama.gguf")
    layout = layout_of("llama")
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    weights = {}
    for tensor in reader.tensors:
        values = np.array(tensor.data)
        parts = tensor.name.split(".")
        if tensor.name == "output_norm.weight":
            module = "model.norm"
        elif parts[0] == "blk" and parts[2] in norms:
            module = f"model.layers.{parts[1]}.{norms[parts[2]]}"
        else:
            found = layout.module(tensor.name)
            if found is None:
                continue
            module = found
            order = layout.row_order(tensor.name, len(values), Heads(4, 4))
            values = values if order is None else values[np.argsort(order)]
        weights[module + ".weight"] = np.ascontiguousarray(values)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 288,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
    } | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_tokenizer(folder: Path) -> None:
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 8),
        model_writer=model,
        model_type="bpe",
        vocab_size=288,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def message(folder: Path, **options: object) -> str:
    output = folder.parent / "output.gguf"
    with pytest.raises(GgtuneError) as caught:
        import_checkpoint(folder, output, **options)  # type: ignore[arg-type]
    assert not [path for path in folder.parent.iterdir() if "gguf" in path.name or path.name.startswith(".")]
    return str(caught.value)


def test_converter_is_there() -> None:
    folder = converter_folder()
    assert (folder / "conversion" / "base.py").is_file()
    assert (folder / "gguf-py" / "gguf" / "__init__.py").is_file()
    assert "MIT" in (folder / "LICENSE").read_text()


def test_incomplete_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert "is no folder" in message(folder)
    write_llama(folder)
    assert "has no tokenizer" in message(folder)
    (folder / "tokenizer.model").write_bytes(b"x")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert "damaged or truncated" in message(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    assert "damaged or truncated" in message(folder)
    weights.unlink()
    assert "has no weights" in message(folder)
    weights.write_bytes(whole)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors are missing" in message(folder)
    (folder / "config.json").write_text("{")
    assert "config.json can't be read" in message(folder)
    (folder / "config.json").unlink()
    assert "no Hugging Face checkpoint" in message(folder)


@pytest.mark.skipif(HAS_CONVERTER, reason="the packages are installed")
def test_missing_packages_are_named(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    (folder / "tokenizer.model").write_bytes(b"x")
    said = message(folder)
    assert "torch" in said
    assert "pip install 'ggtune[import]'" in said


def test_code_of_a_checkpoint_is_kept_from_the_converter(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model", auto_map={"AutoConfig": "code.Config"})
    (folder / "code.py").write_text("")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.T", null]}, "a": 1}')
    with checkpoint._shown(folder, False) as shown:
        assert shown.name == "model"
        assert not (shown / "code.py").exists()
        assert json.loads((shown / "tokenizer_config.json").read_text()) == {"a": 1}
        assert "auto_map" not in json.loads((shown / "config.json").read_text())
        assert (shown / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not shown.exists()
    with checkpoint._shown(folder, True) as shown:
        assert shown == folder
    (folder / "tokenizer_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(config))
    with checkpoint._shown(folder, False) as shown:
        assert shown == folder


def test_command_needs_base_for_adapters_alone(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["import", str(tmp_path), "-o", str(tmp_path / "x.gguf"), "--base", "b.gguf"])
    assert result.exit_code == 2
    assert "adapter_config.json" in result.output


@needs_converter
def test_conversion_gives_back_the_weights(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    write_tokenizer(folder)
    lines: list[str] = []
    output = tmp_path / "out" / "model.gguf"
    import_checkpoint(folder, output, outtype="f32", echo=lines.append)
    assert any("Model architecture: LlamaForCausalLM" in line for line in lines)
    expected = {tensor.name: tensor.data for tensor in gguf.GGUFReader(GOLDEN / "llama.gguf").tensors}
    actual = {tensor.name: tensor.data for tensor in gguf.GGUFReader(output).tensors}
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(actual[name], values), name
    assert [path.name for path in output.parent.iterdir()] == ["model.gguf"]


@needs_converter
def test_conversion_and_quantization_in_one_go(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    write_tokenizer(folder)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "model.gguf"
    result = CliRunner().invoke(cli, ["import", str(folder), "-o", str(output), "--quantize", "q8_0"])
    assert result.exit_code == 0, result.output
    types = {tensor.name: tensor.type for tensor in _core.Model(str(output)).tensors()}
    assert types["blk.0.attn_q.weight"] == "q8_0"
    assert [path.name for path in output.parent.iterdir()] == ["model.gguf"]
    assert "importance matrix" in message(folder, file_type="IQ2_XS")
    assert "no file type" in message(folder, file_type="Q9")


@needs_converter
def test_converter_errors_are_said_plainly(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model", architectures=["NobodysForCausalLM"])
    write_tokenizer(folder)
    assert "no model of the architecture NobodysForCausalLM" in message(folder)
    shutil.rmtree(folder)
    write_llama(folder)
    (folder / "tokenizer.model").write_bytes(b"no tokenizer")
    assert "can't be converted" in message(folder)


@needs_converter
@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_checkpoint_runs_only_where_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # for this architecture the converter asks transformers to run the tokenizer's own code
    folder = write_llama(tmp_path / "model", architectures=["QWenLMHeadModel"], model_type="qwen")
    embedding = {"transformer.wte.weight": np.ones((288, 32), np.float32)}
    save_file(embedding, folder / "model.safetensors", metadata={"format": "pt"})
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n\n\nclass Own:\n    pass\n")
    (folder / "vocab.json").write_text("{}")
    config = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(GgtuneError, match="can't be converted"):  # it is no tokenizer
        import_checkpoint(folder, tmp_path / "output.gguf", trust_remote_code=trusted)
    assert marker.exists() == trusted


@needs_converter
def test_interrupt_ends_the_converter(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    write_tokenizer(folder)
    code = (
        "import sys; from pathlib import Path; from ggtune.interchange.checkpoint import import_checkpoint\n"
        "def stop(line): print(line, flush=True); raise KeyboardInterrupt\n"
        f"import_checkpoint(Path({str(folder)!r}), Path({str(tmp_path / 'output.gguf')!r}), echo=stop)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, env={**os.environ}
    )
    assert "KeyboardInterrupt" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_message_of_a_model_error_is_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        import_checkpoint(tmp_path / "missing", tmp_path / "x.gguf")
