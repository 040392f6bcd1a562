"""ggtune inspect and ggtune models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from architectures import files
from ggtune import _core
from ggtune.config import LINEAR_GROUPS
from ggtune.demo import MODEL
from ggtune.gguf.architectures import architectures
from ggtune.train.inspection import inspect_model
from ggtune.train.targets import chosen_targets

MIXTURE = Path(__file__).parents[1] / "golden" / "peft-experts" / "qwen3moe" / "base.gguf"


def test_the_text(ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("inspect", MODEL)
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "Architecture: llama, 8 layers, width 256, context 1024 tokens" in text
    assert "Parameters: 10.49M\n" in text
    assert "Vocabulary: 8192 tokens (gpt2)" in text
    assert "Chat template: its own, which writes a turn as llama2 does" in text
    assert "  ffn_down          8  768  256           q5_K, q6_K  ffn" in text
    assert "Trains: yes" in text
    assert "Memory by default (--rank 16 --ctx 512): " in text
    assert "it fits" in text


def test_a_mixture_as_json(ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("inspect", MIXTURE, "--json", "--rank", 4, "--ctx", 32)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    model = _core.Model(str(MIXTURE), header_only=True)
    experts = [linear for linear in model.linears() if linear.routed]
    idle = sum(linear.n_in * linear.n_out * (linear.n_mat - 2) for linear in experts)
    assert (found["n_expert"], found["n_expert_used"]) == (4, 2)
    assert found["n_active_params"] == model.n_params - idle < model.n_params == found["n_params"]
    assert found["file_bytes"] == MIXTURE.stat().st_size
    assert found["trains"] is True
    assert found["chat_template"] == ""
    groups = {each["kind"]: each["group"] for each in found["linears"]}
    assert groups["attn_q"] == "attention"
    assert groups["ffn_gate_inp"] == "router"
    assert groups["ffn_up_exps"] == "experts"
    assert set(groups.values()) - {"router"} <= set(LINEAR_GROUPS)
    (down,) = [each for each in found["linears"] if each["kind"] == "ffn_down_exps"]
    assert {key: down[key] for key in ("n", "n_in", "n_out", "n_mat", "types")} == {
        "n": model.n_layer,
        "n_in": 24,
        "n_out": 32,
        "n_mat": 4,
        "types": ["f32"],
    }
    memory = found["memory"]
    kinds = chosen_targets(("dense",), model.linears(), 4, "").kinds
    assert tuple(memory["targets"]) == kinds
    adapter = _core.Adapter(model, rank=4, alpha=4.0, targets=kinds)
    trainer = _core.Trainer(adapter, context=32, threads=1)
    expected = trainer.memory(256, 256, 8)
    assert {part: memory["bytes_by_part"][part] for part in expected} == expected
    assert memory["n_adapter_params"] == adapter.n_params
    assert memory["total_bytes"] == sum(memory["bytes_by_part"].values())
    assert inspect_model(str(MIXTURE), rank=2, ctx=32).memory.n_adapter_params * 2 == adapter.n_params  # type: ignore[union-attr]


def test_what_does_not_train_says_why(ggtune, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = files.write_model(tmp_path, "t5")
    result = ggtune("inspect", path)
    assert result.exit_code == 0, result.output
    assert "Trains: no: this model of the architecture t5 can't be trained: it has an encoder" in result.stdout
    assert "Memory" not in result.stdout
    found = json.loads(ggtune("inspect", path, "--json").stdout)
    assert (found["trains"], found["memory"], found["linears"]) == (False, None, [])


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    lines = inspect_model(str(files.write_model(tmp_path, "llama+grouped")), rank=64).lines()
    assert "  left out, narrower than the rank: attn_k, attn_v" in lines


def test_no_model(ggtune, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    for path in (tmp_path / "no.gguf", tmp_path / "missing.gguf"):
        result = ggtune("inspect", path)
        assert result.exit_code == 1
        assert path.name in result.stderr


def test_models(ggtune) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("models")
    assert result.exit_code == 0, result.output
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines()[:-1])
    assert rows == {name: f"no: {why}" if why else "yes" for name, why in architectures().items()}
    n_yes = len({name.split("+")[0] for name, why in architectures().items() if not why})
    n_all = len({name.split("+")[0] for name in architectures()})
    assert result.stdout.splitlines()[-1] == f"{n_yes} of {n_all} architectures train."
    some = ggtune("models", "gemma3", "bert", "--json")
    assert json.loads(some.stdout) == {
        name: why for name, why in architectures().items() if "gemma3" in name or "bert" in name
    }
    unknown = ggtune("models", "gemma33")
    assert unknown.exit_code == 1
    assert "no architecture with gemma33 in its name" in unknown.stderr


@pytest.mark.parametrize("name", ["qwen3moe", "lfm2", "bert", "deepseek2+experts"])
def test_models_say_what_inspect_says(tmp_path: Path, name: str) -> None:
    found = inspect_model(str(files.write_model(tmp_path, name)), rank=2)
    assert bool(found.refusal) == bool(architectures()[name])
    assert architectures()[name] in found.refusal
