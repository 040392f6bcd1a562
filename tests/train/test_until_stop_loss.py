"""Runs that ``stop_loss`` alone ends."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune._core import Model
from ggtune.config import CEILING_EPOCHS, CEILING_LEAST_STEPS, LEAST_LR, MOST_LR, TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train import monitor
from ggtune.train.forecast import forecast
from ggtune.train.monitor import MAX_REDUCTIONS
from ggtune.train.session import fine_tune, prepare
from ggtune.train.start import settled

ROWS = 4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("".join(DATA.read_text().splitlines(keepends=True)[: 1 + ROWS]))
    return path


def config(data: Path, **changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(data),
        "ctx": 64,
        "batch": ROWS // 2,
        "rank": 2,
        "targets": ("attn_q",),
        "stop_loss": 0.001,
        "save_every": "0",
        "holdout": "0",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture
def short_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "PLATEAU_LEAST_STEPS", 2)


@pytest.mark.usefixtures("short_epochs")
def test_a_loss_that_no_longer_falls_ends_the_run_at_a_lower_rate(tmp_path: Path, table: Path) -> None:
    shown = io.StringIO()
    session = prepare(config(table, lr=1e-9, stop_plateau=1, warmup=0.0), Outputs.folder(tmp_path))
    result = session.loop(Progress(shown)).run()
    rates = [record["lr"] for record in read_metrics(tmp_path / "metrics.jsonl")]
    # two steps an epoch: one epoch to compare with, then one for each rate
    assert rates == pytest.approx([1e-9] * 4 + [5e-10] * 2 + [2.5e-10] * 2 + [1.25e-10] * 2)
    assert shown.getvalue().count("the loss no longer falls at a rate of") == MAX_REDUCTIONS
    assert "ETA -" in shown.getvalue()
    assert "step 1 " in shown.getvalue()
    assert result.is_flat
    assert not result.is_under
    assert "has not got 1 % better in 1 epochs" in result.stop_reason


@pytest.mark.usefixtures("short_epochs")
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_continued_run_lowers_its_rate_at_the_same_step(tmp_path: Path, table: Path, step: int) -> None:
    settings = config(table, lr=1e-9, stop_plateau=1, warmup=0.0, save_every="1", keep=0)
    fine_tune(settings, tmp_path / "whole", quiet=True)
    checkpoint = load_checkpoint(tmp_path / f"whole/checkpoint-{step}.gguf")
    again = prepare(checkpoint.config, Outputs.folder(tmp_path / "again"), checkpoint=checkpoint)
    again.loop(Progress(quiet=True)).run()
    last = sorted(Outputs.folder(tmp_path / "whole").checkpoints())[-1]
    one, other = (load_checkpoint(tmp_path / folder / f"checkpoint-{last}.gguf") for folder in ("whole", "again"))
    for name, values in one.adapter.tensors.items():
        np.testing.assert_array_equal(values, other.adapter.tensors[name])
    assert dataclasses.replace(one.state, elapsed_s=0.0) == dataclasses.replace(other.state, elapsed_s=0.0)
    records = [
        [(record["step"], record["lr"], record["loss"]) for record in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "again")
    ]
    assert records[0][step:] == records[1]


def test_the_ceiling_is_said_before_the_start(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = prepare(config(table), Outputs.folder(tmp_path))
    text = "\n".join(session.report)
    assert session.built.plan.total_steps == CEILING_LEAST_STEPS  # of two steps an epoch
    assert session.built.plan.known_steps is None
    assert f"at most {CEILING_LEAST_STEPS} steps" in text
    assert "under 0.001, or when it no longer falls, at a lower rate neither, or after 1000 steps (500 epochs)" in text
    monkeypatch.setattr("ggtune.train.plan.CEILING_LEAST_STEPS", 3)
    many = prepare(config(table, batch=1), Outputs.folder(tmp_path)).built.plan
    assert many.total_steps == CEILING_EPOCHS * many.steps_per_epoch
    found = forecast(config(table, batch=1))
    assert (found.total_steps, found.until_loss) == (CEILING_EPOCHS * many.steps_per_epoch, 0.001)


def test_the_ceiling_ends_the_run(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggtune.train.plan.CEILING_LEAST_STEPS", 3)
    monkeypatch.setattr("ggtune.train.plan.CEILING_EPOCHS", 1)
    result = fine_tune(config(table), tmp_path, quiet=True)
    assert result.stop_reason == "3 steps are the most that are taken for --stop-loss"
    assert not result.is_under


def test_the_rate_goes_by_the_width(table: Path) -> None:
    @dataclasses.dataclass
    class Wide:
        n_embd: int

    rates = [settled(config(table), Wide(width)).config.lr for width in (64, 576, 2048, 8192)]  # type: ignore[arg-type]
    assert rates == pytest.approx([MOST_LR, 1.7e-3, 4.9e-4, LEAST_LR])
    assert settled(config(table, lr=0.5), Wide(64)).config.lr == 0.5  # type: ignore[arg-type]
    assert settled(config(table, epochs=2.0), Model(str(MODEL), header_only=True)).config.lr == 2e-4


def test_the_demo_model_comes_under_its_loss(tmp_path: Path, table: Path) -> None:
    """By the defaults, with few rows."""
    settings = TrainConfig(model=str(MODEL), data=str(table), ctx=64, holdout="0", stop_loss=0.1)
    result = fine_tune(settings, tmp_path / "run", quiet=True)
    assert result.is_under
    assert result.steps < CEILING_LEAST_STEPS
    assert load_checkpoint(tmp_path / f"run/checkpoint-{result.steps}.gguf").config.lr == pytest.approx(3.9e-3)
