"""What going on is worth, from the curve of the held-out losses."""

from typing import Any

from ggtune.board.live import LiveRun


def curve_of(run: LiveRun) -> Any:
    """Return the curve fitted to the held-out losses, None where there is none."""
    return None


def forecast_text(run: LiveRun) -> str:
    """Say what another epoch would bring, "" where that can't be said."""
    return ""
