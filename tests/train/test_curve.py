"""The fitted held-out curve: what it finds in curves whose law is known, and how often its intervals are right."""

import math

import numpy as np
import pytest

from ggtune.train.curve import fit_curve
from ggtune.train.outlook import measured_losses, outlook


def power_law(steps: np.ndarray, *, floor: float, fall: float, scale: float, power: float) -> np.ndarray:
    return floor + fall * (1 + steps / scale) ** -power


def test_a_curve_without_noise_is_gone_on_with() -> None:
    steps = np.arange(0, 201, 10)
    losses = power_law(steps, floor=1.5, fall=2.0, scale=40.0, power=1.2)
    fit = fit_curve(steps[:11], losses[:11])  # half of it
    assert fit is not None
    found = fit.predict(200)
    assert found.low < losses[-1] < found.high
    assert abs(found.value - losses[-1]) < 0.08
    assert found.high - found.low < 0.5
    near = fit.predict(110)
    assert near.high - near.low < found.high - found.low
    assert abs(near.value - losses[11]) < 0.03


def test_intervals_are_right_as_often_as_they_say() -> None:
    """Of 60 random curves with noise, some of which turn up, seen to their first third."""
    rng = np.random.default_rng(3)
    inside, shares = 0, []
    for _ in range(60):
        steps = np.arange(0, 301, 20)
        floor, fall = rng.uniform(0.5, 3), rng.uniform(0.5, 3)
        losses = power_law(steps, floor=floor, fall=fall, scale=rng.uniform(20, 200), power=rng.uniform(0.5, 2))
        losses += rng.random() * 0.3 * fall / 300 * np.maximum(0, steps - rng.uniform(100, 400))
        losses *= np.exp(0.005 * rng.standard_normal(len(steps)))
        fit = fit_curve(steps[:6], losses[:6])
        assert fit is not None
        found = fit.predict(300)
        inside += found.low <= losses[-1] <= found.high
        shares.append((found.high - found.low) / (losses[0] - losses.min()))
    assert inside >= 54
    assert np.median(shares) < 1.0  # less than all that was learned: no interval that says nothing


def test_a_turn_that_has_come_is_admitted() -> None:
    steps = np.arange(0, 241, 10)
    falling = power_law(steps, floor=2.0, fall=1.5, scale=20.0, power=2.0)
    losses = falling + 0.001 * np.maximum(0, steps - 80) ** 1.3
    fit = fit_curve(steps[:17], losses[:17])
    assert fit is not None
    found = fit.predict(240)
    assert found.low < losses[-1] < found.high
    assert found.low > losses.min()  # it does not hope for a new fall
    assert fit.gain(160, 240).high < 0
    assert fit.gain_over(float(losses.min()), 160, 240).high == 0


def test_the_same_figures_give_the_same_answer_whatever_their_scale() -> None:
    steps = np.arange(0, 101, 10)
    losses = power_law(steps, floor=1.0, fall=1.0, scale=30.0, power=1.0)
    one, again = fit_curve(steps, losses), fit_curve(steps, losses)
    slow = fit_curve(1000 * steps, losses)
    double = fit_curve(steps, 2 * losses)
    assert one is not None and again is not None and slow is not None and double is not None  # noqa: PT018
    assert one.predict(150) == again.predict(150)
    assert slow.predict(150_000).value == pytest.approx(one.predict(150).value, rel=1e-9)
    assert double.predict(150).value == pytest.approx(2 * one.predict(150).value, rel=1e-6)


def test_too_little_to_fit() -> None:
    assert fit_curve([], []) is None
    assert fit_curve([0, 10], [3.0, 2.0]) is None
    assert fit_curve([0, 10, 20], [3.0, math.nan, 2.0]) is None
    assert fit_curve([0, 10, 20], [3.0, 2.5, 2.2]) is not None
    flat = fit_curve([0, 10, 20, 30], [2.0, 2.0, 2.0, 2.0])
    assert flat is not None
    assert flat.predict(30).value == pytest.approx(2.0, abs=0.05)


def test_many_points_are_thinned() -> None:
    steps = np.arange(0, 5000)
    fit = fit_curve(steps, power_law(steps, floor=1.0, fall=1.0, scale=300.0, power=1.0))
    assert fit is not None
    assert fit.predict(4999).value == pytest.approx(1.0 + (1 + 4999 / 300) ** -1, abs=0.01)


# -- what it says ----------------------------------------------------------------------------------------------------


def records(losses: np.ndarray, *, per_epoch: int = 10) -> list[dict[str, object]]:
    """A run that is measured after each epoch; the first loss is that before the training."""
    found: list[dict[str, object]] = [
        {"step": step, "epoch": step / per_epoch, "loss": 1.0} for step in range(1, per_epoch * (len(losses) - 1) + 1)
    ]
    found[0]["held_out_before"] = float(losses[0])
    for i, loss in enumerate(losses[1:], start=1):
        found[i * per_epoch - 1]["held_out_loss"] = float(loss)
    return found


def test_losses_out_of_metrics() -> None:
    taken = measured_losses([*records(np.array([3.0, 2.0, 1.5]))[:20], {"step": 21, "held_out_loss": None}])
    assert taken == [(0, 3.0), (10, 2.0), (20, 1.5)]


def test_a_run_that_still_learns() -> None:
    steps = np.arange(0, 101, 10)
    found = outlook(records(power_law(steps, floor=0.5, fall=3.0, scale=60.0, power=1.0)), 300)
    assert found is not None
    assert not found.can_stop
    assert (found.step, found.steps_per_epoch, found.best_step) == (100, 10, 100)
    assert 0.04 < found.epoch_gain.value < 0.15
    (line,) = found.lines()
    assert line.startswith(f"Outlook: another epoch is worth about {found.epoch_gain.value:.3f} of held-out loss (")
    assert "the 200 steps that are left" in line
    assert found.rest_gain is not None
    assert found.rest_gain.value > found.epoch_gain.value


def test_a_run_that_is_past_its_best() -> None:
    steps = np.arange(0, 161, 10)
    losses = power_law(steps, floor=2.0, fall=1.5, scale=20.0, power=2.0) + 0.004 * np.maximum(0, steps - 80)
    found = outlook(records(losses), 400)
    assert found is not None
    assert found.can_stop
    best = int(losses[1:].argmin()) + 1
    assert found.lines()[-1] == (
        f"You can stop now: step {10 * best} has the best held-out loss, {losses[best]:.4f}, and is kept."
    )
    ended = outlook(records(losses))
    assert ended is not None
    assert ended.rest_gain is None
    assert "that are left" not in ended.lines()[0]
    assert ended.to_dict()["epoch_gain"]["value"] == ended.epoch_gain.value


def test_too_little_to_say() -> None:
    assert outlook([]) is None
    assert outlook(records(np.array([3.0, 2.0, 1.5, 1.2]))) is None
