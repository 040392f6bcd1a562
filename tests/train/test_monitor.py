import math

import pytest

from ggtune.train.monitor import MAX_REDUCTIONS, PLATEAU_LEAST_STEPS, Monitor


def test_smoothed_loss_is_corrected_for_its_start() -> None:
    monitor = Monitor()
    assert math.isnan(monitor.smoothed)
    monitor.update(4.0, 0.0)
    assert monitor.smoothed == pytest.approx(4.0)
    monitor.update(2.0, 0.0)
    assert monitor.smoothed == pytest.approx((0.9 * 4.0 + 2.0) / 1.9)


def test_stops_only_after_enough_steps_in_a_row() -> None:
    monitor = Monitor()
    for loss in (0.05, 0.05, 0.2, 0.05, 0.05):
        monitor.update(loss, 0.1)
        assert monitor.stop_reason(0.1, 3) is None
    monitor.update(0.09, 0.1)
    reason = monitor.stop_reason(0.1, 3)
    assert reason is not None
    assert "under 0.1 for 3 steps" in reason


def test_another_threshold_is_not_taken_for_reached() -> None:
    """As after a run that goes on with another --stop-loss."""
    monitor = Monitor()
    for _ in range(3):
        monitor.update(0.15, 0.2)
    assert monitor.is_under(0.2, 3)
    assert monitor.is_under(0.3, 3)
    assert not monitor.is_under(0.1, 3)
    monitor.update(0.05, 0.1)
    assert not monitor.is_under(0.1, 3)
    assert monitor.n_under == 1
    monitor.update(0.15, 0.2)
    assert monitor.n_under == 2


def test_no_threshold_never_stops() -> None:
    monitor = Monitor()
    monitor.update(0.0, 0.0)
    assert monitor.stop_reason(0.0, 1) is None


def test_state_goes_on_where_it_stood() -> None:
    first = Monitor()
    for loss in (3.0, 0.01):
        first.update(loss, 0.1)
    second = Monitor(**first.state())
    for monitor in (first, second):
        monitor.update(0.02, 0.1)
    assert second == first
    assert second.n_under == 2


def epoch(monitor: Monitor, loss: float, steps: int = PLATEAU_LEAST_STEPS, plateau: int = 2) -> bool:
    for _ in range(steps):
        monitor.update(loss, 0.1)
    return monitor.end_epoch(plateau)


def test_the_loss_of_the_start_is_a_mean() -> None:
    monitor = Monitor()
    for loss in (5.0, 4.0, 3.0, 2.0, 1.0, 0.0):
        monitor.update(loss, 0.0)
    assert monitor.start_loss == pytest.approx(3.0)


def test_epochs_that_bring_nothing_lower_the_rate_and_then_end_the_run() -> None:
    monitor = Monitor()
    for loss in (4.0, 3.0, 2.98, 2.0):  # 2.98 is less than 1 % better than 3, and one such epoch is none too many
        assert not epoch(monitor, loss)
    for n in range(MAX_REDUCTIONS):
        assert [epoch(monitor, loss) for loss in (1.99, 2.1)] == [False, True]
        assert monitor.n_reductions == n + 1
        assert not monitor.is_flat(2)
    assert monitor.stop_reason(0.1, 5, 2) is None
    assert not epoch(monitor, 2.0)
    assert not monitor.is_flat(2)
    assert not epoch(monitor, 2.0)
    assert monitor.is_flat(2)
    assert "has not got 1 % better in 2 epochs (100 steps)" in str(monitor.stop_reason(0.1, 5, 2))
    assert monitor.stop_reason(0.1, 5) is None


def test_small_gains_add_up() -> None:
    """An epoch is compared with the best one before that counted, not with its neighbour."""
    monitor = Monitor()
    assert not any(epoch(monitor, 4.0 * 0.994**n) for n in range(20))
    assert monitor.n_reductions == 0


def test_epochs_of_few_steps_need_more_of_them() -> None:
    monitor = Monitor()
    lowered = [epoch(monitor, 2.0, steps=1) for _ in range(PLATEAU_LEAST_STEPS + 1)]
    assert lowered == [False] * PLATEAU_LEAST_STEPS + [True]


def test_flat_steps_are_counted_in_a_row() -> None:
    monitor = Monitor()
    epoch(monitor, 3.0)
    epoch(monitor, 3.0)
    epoch(monitor, 2.0)
    assert [epoch(monitor, 2.0, steps=1) for _ in range(3)] == [False] * 3
    assert (monitor.n_flat_epochs, monitor.n_flat_steps) == (3, 3)


def test_an_epoch_without_a_step_is_none() -> None:
    monitor = Monitor()
    assert not epoch(monitor, 2.0)
    assert not epoch(monitor, 2.0, steps=0)
    assert (monitor.n_flat_epochs, monitor.best_epoch_loss) == (0, pytest.approx(2.0))


def test_never() -> None:
    monitor = Monitor()
    assert not any(epoch(monitor, 2.0, plateau=0) for _ in range(20))
    assert not monitor.is_flat(0)
