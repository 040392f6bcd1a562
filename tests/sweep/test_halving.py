"""Which trainings go on and what that costs; the values that are tried."""

from fractions import Fraction
from pathlib import Path

import pytest

from ggtune.errors import GgtuneError
from ggtune.sweep.space import Axis, described, parse_axis, trial_name, trials
from ggtune.train.halving import Rung, cost_s, hours, promoted, rungs


@pytest.mark.parametrize(
    ("n", "steps", "factor", "expected"),
    [
        (6, 90, 3, [("1/3", 6), ("1", 2)]),
        (9, 900, 3, [("1/9", 9), ("1/3", 3), ("1", 1)]),
        (27, 900, 3, [("1/27", 27), ("1/9", 9), ("1/3", 3), ("1", 1)]),
        (27, 100, 3, [("1/9", 27), ("1/3", 9), ("1", 3)]),  # 3 steps say nothing
        (8, 1000, 2, [("1/8", 8), ("1/4", 4), ("1/2", 2), ("1", 1)]),
        (2, 1000, 3, [("1", 2)]),
        (6, 29, 3, [("1", 6)]),
        (6, 1000, 1, [("1", 6)]),
    ],
)
def test_rungs(n: int, steps: int, factor: int, expected: list[tuple[str, int]]) -> None:
    assert rungs(n, steps, factor) == [Rung(Fraction(share), count) for share, count in expected]


def test_who_goes_on() -> None:
    losses = [2.0, None, 1.0, float("nan"), 1.0, 0.5, 3.0]
    assert promoted(losses, 2) == [2, 5]  # of equal ones the earlier
    assert promoted(losses, 3) == [2, 4, 5]
    assert promoted(losses, 7) == [0, 2, 4, 5, 6]
    assert promoted([None, None], 1) == []


def test_cost() -> None:
    parts = rungs(6, 90)
    low, about, high = cost_s([90.0] * 3 + [180.0] * 3, parts)
    assert low == pytest.approx(6 * 135 / 3 + 2 * 90 * 2 / 3)
    assert about == pytest.approx(6 * 135 / 3 + 2 * 135 * 2 / 3)
    assert high == pytest.approx(6 * 135 / 3 + 2 * 180 * 2 / 3)
    assert cost_s([5.0, 7.0], rungs(2, 90)) == (12.0, 12.0, 12.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (90, "90 s"),
        (200, "3 min"),
        (3599, "1:00 h"),
        (7800, "2:10 h"),
        (360060, "100:01 h"),
    ],
)
def test_hours(seconds: float, text: str) -> None:
    assert hours(seconds) == text


# -- values ----------------------------------------------------------------------------------------------------------


def test_axes_as_they_are_given() -> None:
    assert parse_axis("lr", "1e-4,3e-4, 1e-4") == Axis("lr", (1e-4, 3e-4))
    assert parse_axis("rank", "8") == Axis("rank", (8,))
    assert parse_axis("lr", "1e-5..1e-3") == Axis("lr", low=1e-5, high=1e-3)
    assert parse_axis("lr", "1e-5..1e-3").text() == "1e-05..0.001"
    assert parse_axis("rank", "8,16").text() == "8,16"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rank", "8,x", r"--rank takes whole numbers separated by commas, or a range low\.\.high \(it is '8,x'\)"),
        ("rank", "8.5", "--rank takes whole numbers"),
        ("lr", "", "--lr takes numbers"),
        ("lr", "1..2..3", "--lr: a range is low"),
        ("lr", "2..1", "the lower end first"),
        ("weight_decay", "0,", "--weight-decay takes numbers"),
    ],
)
def test_axes_that_are_none(name: str, text: str, message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        parse_axis(name, text)


AXES = [Axis("lr", (1e-4, 3e-4, 1e-3)), Axis("rank", (8, 16))]


def test_all_combinations() -> None:
    found = trials(AXES, None, 0)
    assert [tuple(changes.values()) for changes in found] == [
        (lr, rank) for lr in (1e-4, 3e-4, 1e-3) for rank in (8, 16)
    ]
    assert list(found[0]) == ["lr", "rank"]


def test_some_of_them() -> None:
    found = trials(AXES, 4, 0)
    assert len(found) == len({tuple(changes.values()) for changes in found}) == 4
    assert all(changes in trials(AXES, None, 0) for changes in found)
    assert found == trials(AXES, 4, 0)
    assert any(found != trials(AXES, 4, seed) for seed in range(1, 5))
    assert len(trials(AXES, 100, 0)) == 6


def test_drawn_from_ranges() -> None:
    found = trials(
        [Axis("lr", low=1e-5, high=1e-3), Axis("rank", low=4, high=64), Axis("dropout", low=0, high=0.5)], 200, 1
    )
    assert len(found) == 200
    rates = [changes["lr"] for changes in found]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert 80 < sum(rate < 1e-4 for rate in rates) < 120  # evenly on a logarithmic scale
    assert all(isinstance(changes["rank"], int) and 4 <= changes["rank"] <= 64 for changes in found)
    assert 80 < sum(changes["dropout"] < 0.25 for changes in found) < 120
    assert len(trials([Axis("rank", low=4, high=6)], 10, 0)) == 3  # there are no more
    with pytest.raises(GgtuneError, match="--lr is a range: say by --trials how many"):
        trials([Axis("lr", low=1e-5, high=1e-3)], None, 0)


def test_names(tmp_path: Path) -> None:
    assert trial_name(3, 6, {"lr": 3e-4, "rank": 16}) == "03-lr0.0003-rank16"
    assert trial_name(3, 100, {"weight_decay": 0.1}) == "003-weight-decay0.1"
    assert described({"lr": 3e-4, "weight_decay": 0.1}) == "lr 0.0003, weight decay 0.1"
