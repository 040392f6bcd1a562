"""What a run folder holds beside the training itself: answers before and after, scores of evaluations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggtune.evaluate.evaluation import EVALUATION, Evaluation, evaluations_of
from ggtune.run.tail import json_objects
from ggtune.scores.metrics import METRICS

BEFORE_AFTER = "before_after.jsonl"
_MOST_QUESTIONS = 30
_MOST_BYTES = 4 << 20
_LONGEST = 2000  # characters of a text


class Results:
    """Reads the files of the run in ``folder`` when they have changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._signature: object = None
        self.before_after: list[dict[str, str]] = []
        self.scores: dict[str, Any] = {}

    def look(self) -> bool:
        """Read what is there; True where it is something else than before."""
        paths = [self._folder / BEFORE_AFTER, *sorted(self._folder.glob(f"evaluation/*/{EVALUATION}"))]
        signature = [(path, _signature(path)) for path in paths]
        if signature == self._signature:
            return False
        self._signature = signature
        before = self.before_after, self.scores
        self.before_after = [_pair(record) for record in _records(paths[0])[:_MOST_QUESTIONS]]
        self.scores = _table(evaluations_of(self._folder))
        return (self.before_after, self.scores) != before


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            return json_objects(file.read(_MOST_BYTES).splitlines())
    except OSError:
        return []


def _pair(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a question with its texts; "" for one that is not there."""
    texts = {key: record.get(key) for key in ("question", "reference", "before", "after")}
    return {key: text[:_LONGEST] if isinstance(text, str) else "" for key, text in texts.items()}


def _table(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Return a table with a line for each score and a column for each evaluation; empty where there is none."""
    names = [name for name in METRICS if any(name in evaluation.scores for evaluation in evaluations)]
    if not names:
        return {}
    rows = []
    for name in names:
        found = [evaluation.scores.get(name) for evaluation in evaluations]
        rows.append([METRICS[name].title, *(e.text(METRICS[name].digits) if e is not None else "" for e in found)])
    heads = [f"{evaluation.label} ({evaluation.n_samples} samples)" for evaluation in evaluations]
    return {"heads": heads, "rows": rows}
