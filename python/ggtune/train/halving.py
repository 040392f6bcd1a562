"""Successive halving: many trainings are begun, and the better ones go on. When that is, and what it costs.

As in arXiv:1502.07943 (section 3), with the reduction factor of Hyperband (arXiv:1603.06560) and, as there and in
arXiv:1810.05934, rungs at powers of it; a training that goes on is not begun anew.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.run.job import read_settings
from ggtune.run.metrics import last_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.status import read_status_file

FACTOR = 3
LEAST_STEPS = 10  # before any training is left
_LR_FACTORS, _RANK_FACTORS = (Fraction(1, 3), 1, 3), (1, 2)


@dataclass(frozen=True)
class Rung:
    """A part of the way: so many trainings go on until they have taken this share of their steps."""

    share: Fraction
    n_trials: int

    @classmethod
    def whole(cls, n_trials: int) -> "Rung":
        """All the way, for all of them."""
        return cls(Fraction(1), n_trials)


def rungs(n_trials: int, total_steps: int, factor: int = FACTOR) -> list[Rung]:
    """Return the rungs for trainings of ``total_steps`` (the shortest's); the last one's share is 1.

    The first is as early as leaves one training for the last, but no training is left before so many steps that its
    loss says something. ``factor`` 1: all go their whole way.
    """
    n_halvings = 0
    if factor > 1:
        while factor ** (n_halvings + 1) <= n_trials and total_steps >= LEAST_STEPS * factor ** (n_halvings + 1):
            n_halvings += 1
    return [Rung(Fraction(1, factor ** (n_halvings - i)), max(1, n_trials // factor**i)) for i in range(n_halvings + 1)]


def promoted(losses: Sequence[float | None], n: int) -> list[int]:
    """Return which ``n`` go on, in their order: those of the lowest loss; of equal ones the earlier. None never."""
    known = sorted((loss, i) for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss))
    return sorted(i for _, i in known[:n])


def cost_s(seconds: Sequence[float], parts: Sequence[Rung]) -> tuple[float, float, float]:
    """Return seconds of all of it: where the quickest ones go on, about, and where the slowest do.

    ``seconds`` is how long each training would take alone.
    """
    ordered, mean = sorted(seconds), sum(seconds) / len(seconds)
    low = about = high = 0.0
    before = Fraction(0)
    for part in parts:
        share, n = float(part.share - before), part.n_trials
        low += share * sum(ordered[:n])
        about += share * n * mean
        high += share * sum(ordered[-n:])
        before = part.share
    return low, about, high


def hours(seconds: float) -> str:
    """``7800`` as ``2:10 h``; less than an hour as minutes, a few minutes as seconds."""
    if seconds < 180:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def cost_line(folder: str | Path) -> str:
    """Say what a small sweep around the settings of a run would cost, by the run's own time; "" where it is unknown."""
    folder = Path(folder)
    try:
        config = read_settings(folder / "config.json")
    except GgtuneError:
        return ""
    records = last_metrics(Outputs.folder(folder).metrics)
    if config is None or not records or config.lr is None:
        return ""
    total = read_status_file(folder / "status.json").get("total_steps")
    steps, elapsed_s = records[-1]["step"], records[-1].get("elapsed_s")
    if not isinstance(total, int) or not isinstance(elapsed_s, (int, float)) or steps < 1 or elapsed_s <= 0:
        return ""
    lrs = [f"{config.lr * factor:.2g}" for factor in map(float, _LR_FACTORS)]
    ranks = [] if config.from_adapter else [str((config.rank or 1) * factor) for factor in _RANK_FACTORS]
    n = len(lrs) * max(1, len(ranks))
    _, about_s, _ = cost_s([elapsed_s * total / steps] * n, rungs(n, total))
    command = [
        "ggtune",
        "sweep",
        config.data,
        "--model",
        config.model,
        "--out",
        f"{folder}-sweep",
        "--lr",
        ",".join(lrs),
    ]
    command += ["--rank", ",".join(ranks)] if ranks else []
    over = "learning rate and rank" if ranks else "learning rate"
    return f"A sweep of {n} over {over} would take about {hours(about_s)}: {shlex.join(command)}"
