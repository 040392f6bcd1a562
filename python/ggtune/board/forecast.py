"""What going on is worth, for who watches a run: the fit of its held-out losses, made anew when there is a new one."""

from ggtune.run.history import History
from ggtune.run.status import RUNNING, RunStatus
from ggtune.train.curve import CurveFit
from ggtune.train.outlook import Outlook, outlook


class Forecast:
    """Keeps the last fit, which takes some hundredths of a second."""

    def __init__(self) -> None:
        self._of: object = None
        self._outlook: Outlook | None = None

    def outlook(self, history: History, status: RunStatus | None) -> Outlook | None:
        """Return what the held-out losses say; None where there are too few."""
        total = status.total_steps if status is not None and status.state == RUNNING else None
        measured = history.last_held_out
        of = (history.best_held_out, history.held_out_before, measured["step"] if measured else None, total)
        if of != self._of:
            self._of = of
            self._outlook = outlook(history.records(ends=False), total) if measured else None
        return self._outlook

    def lines(self, history: History, status: RunStatus | None) -> list[str]:
        """Say it; of a run that has ended only what another epoch would bring."""
        found = self.outlook(history, status)
        if found is None or status is None:
            return []
        return found.lines() if status.state == RUNNING else found.lines()[:1]

    def curve(self, history: History, status: RunStatus | None) -> CurveFit | None:
        """Return the curve itself."""
        found = self.outlook(history, status)
        return found.fit if found is not None else None
