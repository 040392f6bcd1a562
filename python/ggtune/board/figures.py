"""The curves of a run's page: drawn when a page asks for them, and not more often than they are worth."""

import threading
import time
from dataclasses import dataclass, field

from ggtune.board.collection import Entry
from ggtune.report.plots import DARK_CSS, LIGHT_CSS, Plot, all_figures

WIDTHS = (360, 560, 760, 1140)  # of a figure: pages take the one that fits
_HEIGHT = 300
_SHARE = 20  # drawing takes at most this part of the time
_MOST = 64  # drawings kept


@dataclass(frozen=True)
class _Drawing:
    svg: str
    version: int
    good_until: float


@dataclass
class Figures:
    """Keeps the last drawing of each figure."""

    _drawings: dict[tuple[str, int, str, int], _Drawing] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def plots(entry: Entry) -> list[Plot]:
        """Return what there is to be drawn of a run."""
        with entry.lock:
            records = entry.run.history.records()
            total = entry.run.status.total_steps if entry.run.status is not None else None
            fit = entry.run.curve()
        return all_figures({entry.name: records}, fit=fit, fit_to=total)

    def svg(self, entry: Entry, key: str, width: int) -> str | None:
        """Return a figure as a file of its own; None where there is no such figure. May be of a little while ago."""
        width = min(WIDTHS, key=lambda known: abs(known - width))
        name = (entry.id, entry.stamp, key, width)
        with self._lock:  # one at a time: training has the machine
            began = time.monotonic()
            version = entry.run.versions["figures"]
            kept = self._drawings.get(name)
            if kept is not None and (kept.version == version or began < kept.good_until):
                return kept.svg
            plot = next((plot for plot in self.plots(entry) if plot.key == key), None)
            if plot is None:
                return None
            svg = _standing_alone(plot.svg(width, _HEIGHT))
            ended = time.monotonic()
            if len(self._drawings) >= _MOST:
                self._drawings.pop(next(iter(self._drawings)))
            self._drawings[name] = _Drawing(svg, version, ended + _SHARE * (ended - began))
            return svg


def _standing_alone(svg: str) -> str:
    """Give a figure the colours that it takes from a page elsewhere."""
    style = f"<style>svg {{ {LIGHT_CSS} }} @media (prefers-color-scheme: dark) {{ svg {{ {DARK_CSS} }} }}</style>"
    start = svg.index(">") + 1
    return svg[:start] + style + svg[start:]
