import math

import pytest

from ggtune.train.schedule import Schedule


def run_schedule(kind: str, **changes: object) -> Schedule:
    values = {"warmup": 0.1, "decay_steps": 0, "min_ratio": 0.0, "total_steps": 100, **changes}
    return Schedule.for_run(kind, 2.0, **values)  # type: ignore[arg-type]


def test_warm_up_rises_in_a_line_to_the_peak() -> None:
    schedule = run_schedule("cosine")
    assert [schedule.rate(i) for i in range(10)] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert schedule.rate(10) == 2.0


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_its_minimum() -> None:
    schedule = run_schedule("cosine", min_ratio=0.1)
    assert schedule.rate(55) == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert schedule.rate(10 + 30) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 3))))
    assert schedule.rate(100) == schedule.rate(5000) == pytest.approx(0.2)


def test_linear_and_constant() -> None:
    assert run_schedule("linear").rate(55) == pytest.approx(1.0)
    assert run_schedule("constant").rate(99) == 2.0


def test_warm_up_of_one_or_more_is_a_number_of_steps() -> None:
    schedule = run_schedule("cosine", warmup=20.0, decay_steps=1000, min_ratio=0.1)
    assert schedule.rate(9) == pytest.approx(1.0)
    assert schedule.rate(20 + 500) == pytest.approx(2.0 * 0.55)


def test_a_run_without_end_keeps_its_rate() -> None:
    schedule = run_schedule("cosine", total_steps=None)
    assert schedule.rate(0) == schedule.rate(10**6) == 2.0


def test_a_run_of_one_step_moves() -> None:
    assert run_schedule("cosine", total_steps=1, warmup=0.05).rate(0) > 0
