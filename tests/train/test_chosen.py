"""Which step's adapter is taken of a run."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.run.checkpoint import load_checkpoint, save_checkpoint
from ggtune.run.job import Job
from ggtune.run.outputs import Outputs
from ggtune.train import loop
from ggtune.train.chosen import chosen_adapter
from ggtune.train.session import fine_tune

BEFORE = 5.0


def config(**changes: Any) -> TrainConfig:
    """Each step is an epoch, so the held-out loss is measured after each."""
    values = {
        "model": str(MODEL),
        "data": str(DATA),
        "ctx": 64,
        "batch": 63,
        "rank": 1,
        "targets": ("attn_q",),
        "epochs": 3.0,
        "keep": 1,
        "save_every": "0",
        "holdout": "1",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train with the given held-out losses, one per step."""

    def train(*losses: float, **changes: Any) -> Path:
        left: Iterator[float] = iter([BEFORE, *losses])
        monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(left))
        fine_tune(config(epochs=float(len(losses) or 2), **changes), tmp_path / "run", quiet=True)
        return tmp_path / "run"

    return train


def test_the_best_is_written_beside_the_last(run: Callable[..., Path]) -> None:
    out = run(4.0, 3.0, 3.5)
    for which in ("auto", "best"):
        chosen = chosen_adapter(out, which)  # type: ignore[arg-type]
        assert (chosen.path, chosen.step, chosen.held_out_loss) == (out / "adapter-best.gguf", 2, 3.0)
        assert chosen.reason == "step 2, the best held-out loss (3.0000; the last, step 3, has 3.5000)"
    written = read_adapter(out / "adapter-best.gguf")
    checkpoint = load_checkpoint(out / "checkpoint-2.gguf").adapter
    assert written.notes == checkpoint.notes
    assert written.notes["step"] == "2"
    for name, values in checkpoint.tensors.items():
        np.testing.assert_array_equal(written.tensors[name], values)
    last = chosen_adapter(out, "last")
    assert (last.path, last.step, last.held_out_loss) == (out / "adapter.gguf", 3, 3.5)
    assert last.reason == "step 3, the last (held-out loss 3.5000)"
    assert read_adapter(last.path).notes["step"] == "3"


def test_the_last_may_be_the_best(run: Callable[..., Path]) -> None:
    out = run(4.0, 3.0)
    chosen = chosen_adapter(out)
    assert (chosen.path.name, chosen.step) == ("adapter.gguf", 2)
    assert chosen.reason == "step 2, the last (held-out loss 3.0000): the best held-out loss"
    assert not (out / "adapter-best.gguf").exists()


def test_a_base_that_was_better_is_told_of(run: Callable[..., Path]) -> None:
    chosen = chosen_adapter(run(5.5, 6.0))
    assert chosen.step == 1
    assert chosen.reason.endswith("got worse than its start: the base alone had 5.0000")


def test_who_names_a_loss_gets_the_step_that_has_it(run: Callable[..., Path]) -> None:
    out = run(4.0, 4.5, 4.7, stop_loss=100.0, stop_patience=3)
    chosen = chosen_adapter(out)
    assert (chosen.step, chosen.path.name) == (3, "adapter.gguf")
    assert "the training loss stayed under 100; step 1 had the best held-out loss (4.0000)" in chosen.reason
    assert chosen_adapter(out, "best").step == 1


def test_without_held_out_losses_it_is_the_last(run: Callable[..., Path]) -> None:
    chosen = chosen_adapter(run(holdout="0"), "best")
    assert (chosen.step, chosen.held_out_loss) == (4, None)
    assert chosen.reason == "step 4, the last: no held-out loss was measured"


def test_a_best_checkpoint_that_is_gone_or_damaged(run: Callable[..., Path]) -> None:
    out = run(4.0, 3.0, 3.5)
    (out / "checkpoint-2.gguf").write_bytes((out / "checkpoint-2.gguf").read_bytes()[:-9])
    assert "checkpoint of the best, step 2, can't be used" in chosen_adapter(out).reason
    (out / "checkpoint-2.gguf").unlink()
    chosen = chosen_adapter(out)
    assert chosen.step == 3
    assert "checkpoint-2.gguf: No such file" in chosen.reason


def test_the_adapter_says_its_step_itself(run: Callable[..., Path]) -> None:
    """A run that goes on writes the checkpoint first."""
    out = run(4.0, 3.0)
    newer = load_checkpoint(out / "checkpoint-2.gguf")
    save_checkpoint(
        out / "checkpoint-9.gguf", dataclasses.replace(newer, state=dataclasses.replace(newer.state, step=9))
    )
    chosen = chosen_adapter(out, "last")
    assert (chosen.step, chosen.held_out_loss) == (2, 3.0)
    (out / "adapter.gguf").unlink()
    assert chosen_adapter(out, "last").step == 9
    assert read_adapter(out / "adapter.gguf").notes["step"] == "9"


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(GgtuneError, match="holds no run"):
        chosen_adapter(tmp_path)


def test_a_new_run_removes_the_old_best(run: Callable[..., Path]) -> None:
    out = run(4.0, 3.0, 3.5)
    chosen_adapter(out)
    assert out / "adapter-best.gguf" in Outputs.folder(out).existing()
    (out / ".adapter-best.gguf.1-0.tmp").write_bytes(b"")  # of a killed process
    (out / "evaluation/best").mkdir(parents=True)
    (out / "evaluation/best/evaluation.json").write_text("{}")
    with Job(config(), Outputs.folder(out), 3, "0", overwrite=True):
        assert not list(out.glob("*adapter-best*"))
        assert not (out / "evaluation").exists()
