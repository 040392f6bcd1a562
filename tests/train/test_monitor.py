import math

import pytest

from ggtune.train.monitor import Monitor


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
