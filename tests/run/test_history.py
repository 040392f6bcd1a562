"""Thin curves: what they keep of many steps."""

import math
import random

import pytest

from ggtune.run.history import KEYS, History


def record(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "epoch": step / 100, "loss": 2.0, "smoothed_loss": 2.0, "lr": 1e-4, "elapsed_s": step, **more}


def test_few_steps_stay_as_they_are() -> None:
    history = History()
    records = [record(i, loss=i / 7, **({"held_out_loss": 1.5} if i % 5 == 0 else {})) for i in range(1, 21)]
    history.add(records)
    assert history.records() == records
    assert history.steps_per_epoch == pytest.approx(100)


def test_many_steps_take_a_bounded_room_and_keep_means_and_spikes() -> None:
    history, n = History(most=50), 10_000
    values = random.Random(0)
    losses = [2 + values.random() for _ in range(n)]
    losses[7_777], losses[3_333] = 99.0, 0.25
    for start in range(0, n, 997):  # in pieces, as it is read
        history.add(record(i + 1, loss=losses[i], lr=i) for i in range(start, min(n, start + 997)))
    points = history.points()
    assert 50 <= len(points) <= 100
    assert points[-1]["step"] == history.n_records == n
    records = history.records()
    assert len(records) <= 200
    assert [r["step"] for r in records] == sorted({r["step"] for r in records})
    assert {"step": 7_778, "loss": 99.0}.items() <= next(r for r in records if r["loss"] == 99.0).items()
    assert {"step": 3_334, "loss": 0.25}.items() <= next(r for r in records if r["loss"] == 0.25).items()
    each = n // len(points) + 1
    assert all(abs(p["lr"] - (p["step"] - 1)) <= 2 * each for p in points)
    whole = points[:-1]
    sizes = [b["step"] - a["step"] for a, b in zip([{"step": 0}, *whole], whole, strict=False)]
    assert len(set(sizes)) == 1  # so that the mean of means is the mean
    mean = sum(losses[: whole[-1]["step"]]) / whole[-1]["step"]
    assert sum(p["loss"] for p in whole) / len(whole) == pytest.approx(mean)


def test_held_out_losses_are_on_their_steps_and_in_no_gap() -> None:
    history = History(most=10)
    history.add(record(i, **({"held_out_loss": 3 - i / 1000} if i % 33 == 0 else {})) for i in range(1, 1001))
    measured = [r for r in history.records() if "held_out_loss" in r]
    assert measured[-1]["step"] == 990
    assert all(r["held_out_loss"] == pytest.approx(3 - r["step"] / 1000) for r in measured)
    assert all("loss" in r for r in history.records())
    assert history.best_held_out == (990, pytest.approx(2.01))
    assert len(history.held_out()) <= 21


def test_hostile_values_are_no_figures() -> None:
    history = History()
    history.add([record(1), record(2, loss=math.nan, lr=10**400, epoch="x"), record(3, loss="2", grad_norm=True)])
    history.add([{"step": "4"}, {"step": True}, {"step": 10**30}, {"step": -1}, {}, record(3), record(2)])
    assert history.n_records == 3
    assert [set(KEYS) & set(r) for r in history.records()][1:] == [{"smoothed_loss"}, {"smoothed_loss", "lr"}]
    assert history.steps_per_epoch == pytest.approx(100)


def test_the_loss_before_training_stays() -> None:
    history = History(most=2)
    history.add(record(i, **({"held_out_before": 3.5} if i == 1 else {})) for i in range(1, 100))
    assert history.records()[0]["held_out_before"] == 3.5


def test_dropped_steps_are_gaps() -> None:
    history = History()
    history.add([record(1), record(2, loss=None, dropped="loss not finite"), record(3)])
    assert history.n_dropped == 1
    assert history.records()[1]["dropped"] == "loss not finite"
    assert "loss" not in history.records()[1]
