"""A mixture of experts from the table to the merged file: pairs for every expert, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from architectures import files
from ggtune import _core
from ggtune._core import Model
from ggtune.config import TrainConfig
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.gguf.merge import merge_adapters
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train import build as build_module
from ggtune.train.forecast import forecast
from ggtune.train.session import fine_tune, prepare

EXPERTS = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}
ATTENTION = {"attn_q", "attn_k", "attn_v", "attn_output"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    files.write_model(folder, "qwen3moe")
    rows = [f"{'abcdefgh'[i]}b,{'hgfedcba'[i]}a" for i in range(8)]
    (folder / "data.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    return folder


def config(folder: Path, **changes: object) -> TrainConfig:
    values = {
        "model": str(folder / "qwen3moe.gguf"),
        "data": str(folder / "data.csv"),
        "template": "plain",
        "holdout": "0",
        "ctx": 32,
        "batch": 4,
        "max_steps": 4,
        "rank": 2,
        "lr": 0.02,
        "threads": 1,
        "targets": ("all",),
        "save_every": "2",
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def kinds(bases: list[str]) -> set[str]:
    return {base.removesuffix(".weight").split(".", 2)[2] for base in bases}


def test_all_of_it(folder: Path, tmp_path: Path) -> None:
    session = prepare(config(folder), Outputs.folder(tmp_path / "run"))
    n_expert = next(linear.n_mat for linear in session.built.model.linears() if linear.routed)
    (line,) = [line for line in session.report if line.startswith("Adapter:")]
    assert "M for experts, which take" in line
    assert kinds([name.rpartition(".")[0] for name in session.built.adapter.tensor_names()]) == ATTENTION | EXPERTS
    result = session.loop(Progress(quiet=True)).run()
    assert result.smoothed_loss is not None
    written = read_adapter(result.adapter)
    for base in written.bases:
        a, b = (written.tensors[base + side] for side in (".lora_a", ".lora_b"))
        if kinds([base]) <= EXPERTS:
            assert a.shape[0] == b.shape[0] == n_expert
        assert b.any()

    base = str(folder / "qwen3moe.gguf")
    tokens = np.asarray(Model(base).tokenize("ab ha", add_special=True), dtype=np.int32)
    plain = _core.decode_log_probs(Model(base), tokens)
    live = _core.decode_log_probs(Model(base), tokens, adapter_path=str(result.adapter))
    assert np.abs(live - plain).max() > 0.05
    merge_adapters(base, [(str(result.adapter), 1.0)], tmp_path / "merged.gguf", outtype="f32")
    merged = _core.decode_log_probs(Model(str(tmp_path / "merged.gguf")), tokens)
    assert np.abs(merged - live).max() < 0.1 * np.abs(live - plain).max()


def test_a_resumed_run_is_the_same(folder: Path, tmp_path: Path) -> None:
    fine_tune(config(folder), tmp_path / "whole", quiet=True)
    checkpoint = load_checkpoint(tmp_path / "whole/checkpoint-2.gguf")
    assert any(values.ndim == 3 for values in checkpoint.adapter.tensors.values())
    prepare(checkpoint.config, Outputs.folder(tmp_path / "again"), checkpoint=checkpoint).loop(
        Progress(quiet=True)
    ).run()
    one, other = (tmp_path / name / "adapter.gguf" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


def test_going_on_from_an_adapter_of_experts(folder: Path, tmp_path: Path) -> None:
    trained = fine_tune(config(folder), tmp_path / "first", quiet=True).adapter
    before = read_adapter(trained)
    go_on = config(folder, from_adapter=str(trained), rank=None, targets=None)
    session = prepare(go_on, Outputs.folder(tmp_path / "second"))
    for name, values in before.tensors.items():
        np.testing.assert_array_equal(session.built.adapter.get(name), values)
    assert set(session.built.config.targets) == ATTENTION | EXPERTS


def test_the_default_leaves_experts_out(folder: Path, tmp_path: Path) -> None:
    session = prepare(config(folder, targets=None), Outputs.folder(tmp_path))
    assert session.built.config.targets == ("dense",)
    assert kinds([name.rpartition(".")[0] for name in session.built.adapter.tensor_names()]) == ATTENTION
    assert not any("experts" in line for line in session.report)


def test_memory_that_is_short_is_told_with_what_to_choose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = forecast(config(folder))
    assert "M for experts, which take" in found.experts
    assert not forecast(config(folder, targets=("attention",))).experts
    monkeypatch.setattr(build_module, "available_memory", lambda: 1 << 10)
    with pytest.raises(GgtuneError, match=r"or --targets dense \(of the adapter's parameters are .*M for experts"):
        prepare(config(folder), Outputs.folder(folder / "run"))
    with pytest.raises(GgtuneError, match=r"fewer --targets\.$"):
        prepare(config(folder, targets=("attention",)), Outputs.folder(folder / "run"))


def test_what_is_left_out_is_told(folder: Path, tmp_path: Path) -> None:
    grouped = files.write_model(tmp_path, "llama+grouped")
    session = prepare(config(folder, model=str(grouped), rank=64), Outputs.folder(tmp_path / "narrow"))
    assert "Left out, narrower than the rank: attn_k, attn_v" in session.report

    indexed = str(files.write_model(tmp_path, "qwen4exp+experts"))
    chosen = config(folder, model=indexed, targets=("attn_q", "indexer.q_proj"), max_steps=2)
    session = prepare(chosen, Outputs.folder(tmp_path / "indexed"))
    dropped = session.built.adapter.dropped
    assert kinds(dropped) == {"indexer.q_proj"}
    assert f"Left out, the loss does not depend on them: {', '.join(dropped)}" in session.report
    assert kinds(session.built.initial().bases) == {"attn_q"}
    result = session.loop(Progress(quiet=True)).run()
    assert kinds(read_adapter(result.adapter).bases) == {"attn_q"}
    checkpoint = load_checkpoint(tmp_path / "indexed/checkpoint-2.gguf")
    resumed = prepare(checkpoint.config.continued({"max_steps": 3}), session.outputs, checkpoint=checkpoint)
    assert resumed.loop(Progress(quiet=True)).run().steps == 3
