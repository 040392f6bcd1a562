"""How sure it is that the best trial of a sweep is better than the next one: sample by sample, not by two numbers."""

from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import GgtuneError
from ggtune.evaluate.evaluation_scores import difference
from ggtune.pipeline import EvaluateOptions, evaluate
from ggtune.run.outputs import EVALUATIONS
from ggtune.run.progress import Reporter
from ggtune.scores.statistics import Difference
from ggtune.sweep.sheet import Outcome, Trial
from ggtune.sweep.space import described


@dataclass(frozen=True)
class Closeness:
    """The held-out losses of the two best trials, at the best step of each."""

    second: Trial
    difference: Difference  # of the loss, the second's less the best's
    n_samples: int

    def line(self) -> str:
        """Say it."""
        found = self.difference
        interval = f" [{found.low:.4f}, {found.high:.4f}]" if found.has_interval else ""
        text = (
            f"The next one, {described(self.second.changes)}, is worse by {found.value:.4f}{interval} on "
            f"{self.n_samples} held-out samples (p = {found.p_value:.3f})"
        )
        if found.is_significant:
            return text + "."
        return text + ": that may be chance, so take the one that costs less, or hold out more."


def closeness(folder: Path, ranking: list[tuple[Trial, Outcome]], threads: int, reporter: Reporter) -> Closeness | None:
    """Measure the two best on each held-out sample; None where there are no two, or they can't be measured.

    What is measured goes to ``evaluation/`` of the sweep's folder, and is there when it is asked for again.
    """
    pair = [(trial, outcome) for trial, outcome in ranking[:2] if outcome.best_step is not None]
    if len(pair) < 2:
        return None
    options = EvaluateOptions(generate=False, metrics=("loss",), threads=threads, overwrite=True)
    answers = []
    try:
        for trial, outcome in pair:
            what = f"{folder / trial.name}@{outcome.best_step}"
            found = evaluate(what, folder / EVALUATIONS / f"{trial.name}-step-{outcome.best_step}", options)
            answers.append(found.answers())
        found_difference = difference("loss", *answers)
    except (GgtuneError, ValueError) as error:
        reporter.note(f"The two best trials are not compared sample by sample: {error}")
        return None
    return None if found_difference is None else Closeness(pair[1][0], found_difference, len(answers[0]))
