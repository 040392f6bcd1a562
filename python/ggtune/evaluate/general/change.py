"""What has become of a model's general abilities: the same text and questions before and after."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggtune.errors import GgtuneError
from ggtune.evaluate.general.measure import General, measure_general
from ggtune.evaluate.log_probs import Adapters
from ggtune.scores.statistics import Difference, paired_difference

Subject = tuple[str | Path, Adapters]
"""A model file, and adapters beside it with their factors."""


@dataclass(frozen=True)
class GeneralChange:
    """Two models on the same windows and questions."""

    before: General
    after: General

    @property
    def loss(self) -> Difference:
        """Difference of the losses, nats per token, paired by window."""
        return paired_difference(self.before.losses, self.after.losses, self.before.n_tokens)

    @property
    def right(self) -> Difference:
        """Difference of the share of questions that are answered right, paired by question."""
        return paired_difference(self.before.right, self.after.right)

    def lines(self) -> list[str]:
        """Say it in two lines."""
        loss, right = self.loss, self.right
        percent, spread = 100 * math.expm1(loss.value), 0.0
        if loss.has_interval:
            spread = 50 * (math.expm1(loss.high) - math.expm1(loss.low))
        about = f" ± {spread:.1f}" if loss.has_interval else ""
        name = f"perplexity of {self.before.text}" if self.before.text else "general text perplexity"
        n = len(self.before.questions)
        before, after = int(sum(self.before.right)), int(sum(self.after.right))
        chance = "" if right.is_significant or before == after else ", which chance alone explains"
        return [
            f"{name} {self.before.perplexity:.1f} -> {self.after.perplexity:.1f} ({percent:+.1f} %{about}, "
            f"{len(self.before.losses)} window{'s' * (len(self.before.losses) > 1)})",
            f"general questions {before} -> {after} of {n} right{chance}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        loss, right = self.loss, self.right
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "loss_difference": {**loss.to_dict(), "p_value": _finite(loss.p_value)},
            "perplexity_change": {
                name: _finite(math.expm1(value))
                for name, value in (("value", loss.value), ("low", loss.low), ("high", loss.high))
            },
            "right_difference": {**right.to_dict(), "p_value": _finite(right.p_value)},
            "lines": self.lines(),
        }


def what_it_broke(
    before: Subject,
    after: Subject,
    *,
    text: Path | None = None,
    threads: int = 0,
    seconds: float = math.inf,
    done: Callable[[int, int], object] = lambda n, of: None,
) -> GeneralChange:
    """Measure two models on the built-in text (or the one in the file ``text``) and questions.

    ``seconds`` bounds about what both take together, ``done`` is told how far it is. Raises :class:`GgtuneError`.
    """
    first = measure_general(
        before[0], before[1], text=text, threads=threads, seconds=seconds / 2, done=lambda n, of: done(n, 2 * of)
    )
    n_windows = len(first.losses)
    second = measure_general(
        after[0],
        after[1],
        text=text,
        threads=threads,
        n_windows=n_windows,
        done=lambda n, of: done(of + n, 2 * of),
    )
    return compared(first, second)


def compared(before: General, after: General) -> GeneralChange:
    """Pair what was measured apart. Raises :class:`GgtuneError` where the windows are not the same."""
    if before.text != after.text or before.n_tokens.tolist() != after.n_tokens.tolist():
        raise GgtuneError("these models don't read the text in the same tokens: their perplexities can't be compared")
    return GeneralChange(before, after)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
