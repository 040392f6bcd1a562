"""What a run says of its steps is what the engine gave: losses per weighted token, norms, rates, counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from config_table import ONE_EPOCH, File
from recorded import MicroBatch, Seen

BaseRun = Callable[[dict[str, Any]], Seen]


def mean(batches: list[MicroBatch]) -> float:
    """The loss per weighted token."""
    return sum(batch.loss_sum for batch in batches) / sum(batch.weight_sum for batch in batches)


def mean_of_means(batches: list[MicroBatch]) -> float:
    return sum(batch.loss_sum / batch.weight_sum for batch in batches) / len(batches)


@pytest.fixture
def run(base_run: BaseRun) -> Seen:
    """Two epochs, steps of several micro-batches, held-out samples in several of them."""
    return base_run({**ONE_EPOCH, "holdout": "17", "epochs": 2.0, "batch": 16})


def test_training_loss(run: Seen) -> None:
    assert all(len(batches) > 1 for batches in run.micro_batches)
    expected = [mean(batches) for batches in run.micro_batches]
    assert run.losses == pytest.approx(expected, rel=1e-9)
    for other in (mean_of_means, lambda batches: batches[-1].loss_sum / batches[-1].weight_sum):
        assert run.losses != pytest.approx([other(batches) for batches in run.micro_batches], rel=1e-4)


def test_held_out_loss(run: Seen) -> None:
    n_before = len(run.evaluated) // 3  # before the first step, and after each epoch
    parts = [run.evaluated[i : i + n_before] for i in range(0, len(run.evaluated), n_before)]
    assert n_before > 1
    assert f"held-out loss before training: {mean(parts[0]):.4f}" in run.output
    told = [record["held_out_loss"] for record in run.metrics if "held_out_loss" in record]
    assert told == pytest.approx([mean(part) for part in parts[1:]], rel=1e-9)
    assert told != pytest.approx([mean_of_means(part) for part in parts[1:]], rel=1e-4)


def test_numbers_of_each_step(run: Seen) -> None:
    n_steps = run.n_steps // 2
    assert [record["step"] for record in run.metrics] == list(range(1, run.n_steps + 1))
    assert [record["epoch"] for record in run.metrics] == pytest.approx([(i + 1) / n_steps for i in range(run.n_steps)])
    assert [record["grad_norm"] for record in run.metrics] == run.norms
    assert [record["lr"] for record in run.metrics] == run.rates
    for record, batches in zip(run.metrics, run.micro_batches, strict=True):
        assert record["n_micro_batches"] == len(batches)
        assert record["n_tokens"] == sum(batch.n_tokens for batch in batches)
        assert record["n_target_weight"] == sum(batch.weight_sum for batch in batches)


def test_smoothed_loss(run: Seen) -> None:
    """An exponential moving average of 0.9, corrected for its start."""
    average = 0.0
    for i, record in enumerate(run.metrics):
        average = 0.9 * average + 0.1 * record["loss"]
        assert record["smoothed_loss"] == pytest.approx(average / (1 - 0.9 ** (i + 1)))


def test_every_sample_once_per_epoch(run: Seen) -> None:
    half = run.n_steps // 2
    epochs = [
        [one.text for step in steps for batch in step for one in batch.sequences]
        for steps in (run.micro_batches[:half], run.micro_batches[half:])
    ]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(set(epochs[0])) == len(epochs[0]) == 64 - 17
    assert epochs[0] != epochs[1]


def test_a_last_step_of_few_samples(base_run: BaseRun) -> None:
    run = base_run({"data": File("table.csv"), **ONE_EPOCH, "batch": 4})
    assert [sum(len(batch.sequences) for batch in step) for step in run.micro_batches] == [4, 2]
