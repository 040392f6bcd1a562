"""Runs on the demo model: a few steps each."""

import dataclasses
import json
import signal
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.interrupts import RunInterruptedError
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train.plan import Plan
from ggtune.train.session import fine_tune, prepare

STEPS = 6
# metrics that depend on the clock, and on the process
TIMES = {"tokens_per_second", "elapsed_s", "eval_s", "sample_s", "memory_bytes"}


def config(**changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(DATA),
        "ctx": 64,
        "batch": 4,
        "micro_batch_tokens": 64,
        "rank": 4,
        "lr": 2e-3,
        "dropout": 0.1,
        "rslora": True,
        "epochs": 0.0,
        "max_steps": STEPS,
        "decay_steps": 100,
        "save_every": "2",
        "keep": 0,
        "holdout": "every:2",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    fine_tune(config(), out, quiet=True)
    return out


def go_on(out: Path, checkpoint: Path, **changes: Any) -> None:
    loaded = load_checkpoint(checkpoint)
    settings = dataclasses.replace(loaded.config, **changes)
    prepare(settings, Outputs.folder(out), checkpoint=loaded).loop(Progress(quiet=True)).run()


def without_times(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in TIMES} for record in read_metrics(out / "metrics.jsonl")]


def assert_same_run(out: Path, expected: Path) -> None:
    one, other = (load_checkpoint(folder / f"checkpoint-{STEPS}.gguf") for folder in (out, expected))
    for name, values in other.adapter.tensors.items():
        np.testing.assert_array_equal(one.adapter.tensors[name], values)
        for got, wanted in zip(one.moments[name], other.moments[name], strict=True):
            np.testing.assert_array_equal(got, wanted)
    one_state, other_state = (dataclasses.replace(c.state, elapsed_s=0.0, started="") for c in (one, other))
    assert one_state == other_state
    assert without_times(out) == without_times(expected)


def test_the_run_folder(whole_run: Path) -> None:
    assert sorted(path.name for path in whole_run.iterdir()) == [
        "adapter.gguf",
        *(f"checkpoint-{step}.gguf" for step in (2, 4, 6)),
        "config.json",
        "data_card.json",
        "metrics.jsonl",
        "status.json",
    ]
    assert TrainConfig.from_dict(json.loads((whole_run / "config.json").read_text())) == config()
    records = read_metrics(whole_run / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert records[-1]["loss"] < records[0]["loss"]
    assert "held_out_loss" in records[-1]
    assert all(record["grad_norm"] > 0 for record in records)
    final = load_checkpoint(whole_run / f"checkpoint-{STEPS}.gguf")
    adapter = read_adapter(whole_run / "adapter.gguf")
    assert adapter.notes["template"] == "model"
    for name, values in final.adapter.tensors.items():
        np.testing.assert_array_equal(adapter.tensors[name], values)


def test_the_run_went_through_several_micro_batches(whole_run: Path) -> None:
    assert max(record["n_micro_batches"] for record in read_metrics(whole_run / "metrics.jsonl")) > 1


@pytest.mark.parametrize("step", [2, 4])
def test_a_continued_run_equals_an_uninterrupted_one(tmp_path: Path, whole_run: Path, step: int) -> None:
    (tmp_path / "metrics.jsonl").write_text((whole_run / "metrics.jsonl").read_text())
    go_on(tmp_path, whole_run / f"checkpoint-{step}.gguf")
    assert_same_run(tmp_path, whole_run)


def interrupting(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Raise SIGTERM before a certain micro-batch of the engine, as it may come at any time."""
    from ggtune.train import loop

    calls = iter(range(1, 1000))
    allowed = loop.Interrupts.allowed
    wanted = {"accumulate": "_step", "evaluate": "held_out_loss"}[method]

    def hit(self: Any) -> Any:
        if sys._getframe(1).f_code.co_name == wanted and next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return allowed(self)

    monkeypatch.setattr(loop.Interrupts, "allowed", hit)


@pytest.mark.parametrize(
    ("method", "call"),
    [("accumulate", 6), ("evaluate", 2)],  # the latter in the evaluation after the last step
)
def test_an_interrupted_run_goes_on_to_the_same_end(
    tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    session = prepare(config(), Outputs.folder(tmp_path))
    before = len(session.built.plan.held_out) if method == "evaluate" else 0
    with monkeypatch.context() as patch:
        interrupting(patch, method, before + call)
        with pytest.raises(RunInterruptedError) as caught:
            session.loop(Progress(quiet=True)).run()
    assert caught.value.signum == signal.SIGTERM
    checkpoint = caught.value.checkpoint
    assert checkpoint is not None
    assert 0 < load_checkpoint(checkpoint).state.step <= STEPS
    go_on(tmp_path, checkpoint)
    assert_same_run(tmp_path, whole_run)


def test_other_data_or_model_is_refused(tmp_path: Path, whole_run: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(DATA.read_text().replace("iron", "tin", 1))
    with pytest.raises(GgtuneError, match="the data has changed"):
        go_on(tmp_path / "out", whole_run / "checkpoint-2.gguf", data=str(table))
    changed = bytearray(MODEL.read_bytes())
    reader = gguf.GGUFReader(MODEL)
    tensor = next(t for t in reader.tensors if t.name == "blk.3.ffn_up.weight")
    changed[int(tensor.data_offset) + 100] ^= 1
    model = tmp_path / "model.gguf"
    model.write_bytes(changed)
    with pytest.raises(GgtuneError, match="another model"):
        go_on(tmp_path / "out", whole_run / "checkpoint-2.gguf", model=str(model))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", ["data", "more", "held"])
def test_resuming_names_the_file_that_has_changed(tmp_path: Path, changed: str) -> None:
    for name in ("data", "more", "held"):
        (tmp_path / f"{name}.csv").write_text(f"question,answer\nWhat is {name}?,It is {name}.\n")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("data", "more", "held")}
    own = config(data=files["data"], more_data=(files["more"],), holdout=files["held"], batch=1, max_steps=1)
    fine_tune(own, tmp_path / "run", quiet=True)
    checkpoint = tmp_path / "run" / "checkpoint-1.gguf"
    assert set(load_checkpoint(checkpoint).state.data_files) == {"data.csv", "more.csv", f"{files['held']} (held out)"}
    path = tmp_path / f"{changed}.csv"
    path.write_text(path.read_text().replace("It is", "It was"))
    named = {"data": "data.csv", "more": "more.csv", "held": rf"{files['held']} \(held out\)"}[changed]
    with pytest.raises(GgtuneError, match=rf"the samples of {named} are not those that the checkpoint was trained on"):
        go_on(tmp_path / "out", checkpoint)


def test_it_stops_when_the_loss_stays_low(tmp_path: Path) -> None:
    result = fine_tune(config(stop_loss=1e3, stop_patience=3, holdout="0"), tmp_path, quiet=True)
    assert result.steps == 3
    assert "stayed under 1000 for 3 steps" in result.stop_reason
    assert (tmp_path / "adapter.gguf").exists()


def test_where_it_stops_the_held_out_loss_is_measured(tmp_path: Path) -> None:
    result = fine_tune(config(stop_loss=1e3, stop_patience=3, holdout="4"), tmp_path, quiet=True)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [("held_out_loss" in record) for record in records] == [False, False, True]
    assert result.held_out_loss == records[-1]["held_out_loss"]
    assert result.best_step == 3


def test_recomputation_gives_the_same_run(tmp_path: Path, whole_run: Path) -> None:
    fine_tune(config(recompute="layers"), tmp_path, quiet=True)
    losses = [[record["loss"] for record in read_metrics(out / "metrics.jsonl")] for out in (tmp_path, whole_run)]
    assert losses[0] == losses[1]


def test_every_epoch_sees_every_sample_once_in_another_order(tmp_path: Path) -> None:
    plan = prepare(config(holdout="0", batch=5), Outputs.folder(tmp_path)).built.plan
    seen = [_tokens(plan, epoch) for epoch in (0, 1, 0)]
    assert sorted(seen[0]) == sorted(seen[1])
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]
    assert len(seen[0]) == 64
    assert plan.steps_per_epoch == 13


def _tokens(plan: Plan, epoch: int) -> list[tuple[int, ...]]:
    return [
        tuple(batch.tokens[batch.sequences == sequence])
        for cursor in range(plan.steps_per_epoch)
        for batch in plan.micro_batches(epoch, cursor)
        for sequence in range(len(batch.samples))
    ]


class Recording(TrainConfig):
    """Notes which fields are read, but for the places that go over all of them."""

    def __getattribute__(self, name: str) -> Any:
        if sys._getframe(1).f_code.co_name not in ("to_dict", "__post_init__", "differences", "__eq__", "__repr__"):
            object.__getattribute__(self, "__dict__").setdefault("_read", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.fixture
def recording() -> Recording:
    return Recording(**{**config().to_dict(), "targets": ("attn_q",), "max_steps": 1})


def test_every_setting_is_read(tmp_path: Path, recording: Recording) -> None:
    fine_tune(recording, tmp_path, quiet=True)
    read = object.__getattribute__(recording, "__dict__")["_read"]
    assert {f.name for f in dataclasses.fields(TrainConfig)} - read == set()
