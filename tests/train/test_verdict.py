"""What is said last of a run that did not go as it should."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from ggtune.config import TrainConfig
from ggtune.train.result import Result
from ggtune.train.verdict import has_diverged, verdicts


def result(settings: dict[str, Any] | None = None, **changes: Any) -> Result:
    """A run that went well: 100 steps, both losses halved."""
    good = Result(
        config=TrainConfig(model="m", data="d", **(settings or {})),
        steps=100,
        stop_reason="all 100 steps are done",
        loss=1.0,
        smoothed_loss=1.0,
        held_out_loss=1.5,
        held_out_before=2.0,
        best_held_out=1.5,
        best_step=100,
        first_loss=2.0,
        start_loss=2.0,
        n_updates=100,
        steps_per_epoch=40,
        is_under=False,
        is_flat=False,
        n_tokens=1000,
        seconds=1.0,
        adapter=Path("adapter.gguf"),
    )
    return dataclasses.replace(good, **changes)


def test_a_good_run_needs_no_words() -> None:
    assert verdicts(result()) == []
    assert verdicts(result({"stop_loss": 1.5, "epochs": 9.0}, is_under=True, n_updates=9)) == []
    # few steps, but much learned
    assert verdicts(result(n_updates=9, smoothed_loss=0.9)) == []


def test_worse_than_its_start() -> None:
    (text,) = verdicts(result(held_out_loss=2.5, best_held_out=1.75, best_step=40))
    assert text.startswith(
        "The held-out loss got worse than its start: 2.0000 before the training, 2.5000 after it; step"
    )
    assert "step 40 had the best, 1.7500" in text
    assert "fewer --epochs" in text
    assert "--which best" in text
    (text,) = verdicts(result(held_out_loss=2.5, best_held_out=1.75, best_step=40, is_under=True))
    assert "by heart" in text
    (text,) = verdicts(result(held_out_loss=2.5, best_held_out=2.25, best_step=40))
    assert "no step was better" in text
    assert "--holdout 0" in text


@pytest.mark.parametrize(
    ("settings", "steps", "advice"),
    [({"epochs": 2.5}, 100, "--epochs 5"), ({"max_steps": 100}, 100, "--max-steps 200"), ({}, 120, "--epochs 6")],
)
def test_a_missed_stop_loss(settings: dict[str, Any], steps: int, advice: str) -> None:
    (text,) = verdicts(result({"stop_loss": 0.1, "epochs": 3.0, **settings}, steps=steps))
    assert text.startswith(f"--stop-loss 0.1 was missed: the training loss is 1.0000 after {steps} steps.")
    assert f"`ggtune resume` with {advice}," in text


def test_a_loss_that_no_longer_falls() -> None:
    (text,) = verdicts(result({"stop_loss": 0.1, "lr": 1e-3}, is_flat=True))
    assert "no longer falls" in text
    assert "different answers" in text


def test_too_few_steps() -> None:
    (text,) = verdicts(result({"lr": 1e-3}, n_updates=9, smoothed_loss=1.8))
    assert text.startswith(
        "Only 9 steps were taken, too few to learn much (the training loss went from 2.0000 to 1.8000)"
    )
    assert "--epochs 3, a smaller --batch than 8, or a higher --lr than 0.001" in text
    (text,) = verdicts(result({"lr": 1e-3}, smoothed_loss=1.95))
    assert text.startswith("Hardly anything was learned")


def test_divergence_is_told_alone() -> None:
    bad = result({"stop_loss": 0.1, "lr": 1e-3}, smoothed_loss=7.0, held_out_loss=8.0, n_updates=9)
    assert has_diverged(bad)
    (text,) = verdicts(bad)
    assert text.startswith("The run has diverged: the training loss is 7, 2 at the start.")
    assert "smaller --lr than 0.001" in text
    (text,) = verdicts(result(held_out_loss=math.nan))
    assert "the held-out loss is not finite" in text


@pytest.mark.parametrize(("start", "end", "diverged"), [(2.0, 2.7, False), (2.0, 2.8, True), (0.05, 0.3, False)])
def test_noise_is_no_divergence(start: float, end: float, diverged: bool) -> None:
    assert has_diverged(result(first_loss=start, start_loss=start, smoothed_loss=end)) == diverged


def test_divergence_within_the_first_steps() -> None:
    assert has_diverged(result(first_loss=5.0, start_loss=11.0, smoothed_loss=8.5))
    assert not has_diverged(result(first_loss=1.6, start_loss=2.5, smoothed_loss=2.6))  # an easy first batch


@pytest.mark.parametrize(("held_out", "diverged"), [(7.3, True), (5.7, False), (None, False)])
def test_both_losses_worse_are_divergence(held_out: float | None, diverged: bool) -> None:
    losses = {"first_loss": 5.1, "start_loss": 6.0, "smoothed_loss": 7.5, "held_out_before": 5.3}
    assert has_diverged(result(**losses, held_out_loss=held_out)) == diverged


def test_small_losses_that_rise_by_a_tenth_are_none() -> None:
    losses = {"first_loss": 0.02, "start_loss": 0.02, "smoothed_loss": 0.025}
    assert not has_diverged(result(**losses, held_out_before=0.02, held_out_loss=0.025))


def test_a_training_loss_that_is_no_number() -> None:
    assert has_diverged(result(first_loss=2.0, start_loss=2.0, smoothed_loss=float("nan")))


def test_overfitting_is_no_divergence() -> None:
    assert not has_diverged(result(smoothed_loss=0.1, held_out_loss=20.0))


def test_a_resumed_run_of_an_older_version() -> None:
    assert verdicts(result(first_loss=None, start_loss=None, n_updates=9)) == []
