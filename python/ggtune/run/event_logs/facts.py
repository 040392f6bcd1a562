"""What an event log is told: the run it is of, its past, and the numbers of a step under their names in the log."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ggtune.run.metrics import read_metrics

Record = Mapping[str, Any]

HELD_OUT, TRAINING = "loss/held_out", "loss/training"
# of a record of metrics.jsonl, in the order in which they are written
_SCALARS = {
    "loss": TRAINING,
    "smoothed_loss": "loss/smoothed",
    "held_out_loss": HELD_OUT,
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "epoch": "progress/epoch",
    "n_tokens": "progress/tokens_of_step",
    "tokens_per_second": "speed/tokens_per_second",
    "eval_s": "speed/evaluation_s",
    "sample_s": "speed/sample_answers_s",
    "memory_bytes": "memory/resident_bytes",
}
_SCORES = "held_out_scores"


@dataclass(frozen=True)
class RunFacts:
    """The run that a log is of."""

    folder: Path  # of the log; the clients that keep several runs have theirs in it
    name: str
    settings: Mapping[str, str | int | float | bool]  # the hyperparameters
    started: str  # ISO time of the run's first session

    @property
    def identity(self) -> str:
        """Return what names the run among all others, in every session of it."""
        text = json.dumps([str(self.folder.resolve().parent), self.started])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


@dataclass(frozen=True)
class Past:
    """What there is of a run up to a step: records as of ``metrics.jsonl``, lines as of ``samples.jsonl``."""

    records: tuple[Record, ...] = ()
    answers: tuple[Record, ...] = ()


class EventLog(Protocol):
    """One log. Any exception of any method is taken for a failure of it: it is begun anew, later."""

    def begin(self, facts: RunFacts, past: Past) -> None:
        """Write the log anew: whatever is there of the run is replaced by its settings and its past."""

    def step(self, record: Record) -> None:
        """Write a step."""

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        """Write the sampled answers of a step."""

    def end(self, state: str) -> None:
        """Close it; ``state`` is one of :mod:`ggtune.run.status`."""

    def abandon(self) -> None:
        """Close what a failure has left open, as far as that can be done."""


def points(record: Record) -> list[tuple[int, dict[str, float]]]:
    """Return steps with their numbers: that of the record, and before it step 0, where the record tells of that."""
    before = scalars({"held_out_loss": record.get("held_out_before")})
    return [*([(0, before)] if before else []), (record["step"], scalars(record))]


def scalars(record: Record) -> dict[str, float]:
    """Return the numbers of a record of ``metrics.jsonl`` by their names in a log; none that is not finite."""
    found = {name: record[key] for key, name in _SCALARS.items() if key in record}
    scores = record.get(_SCORES)
    if isinstance(scores, Mapping):
        found.update({f"score/{name}": value for name, value in scores.items()})
    return {name: float(value) for name, value in found.items() if _is_number(value)}


def past_of(metrics: Path, samples: Path, step: int) -> Past:
    """Read what the run's files hold up to ``step``."""
    records, answers = (
        tuple(record for record in read_metrics(path) if record["step"] <= step) for path in (metrics, samples)
    )
    return Past(records, answers)


def by_step(answers: Iterable[Record]) -> dict[int, list[Record]]:
    """Group lines of ``samples.jsonl``."""
    grouped: dict[int, list[Record]] = {}
    for line in answers:
        grouped.setdefault(line["step"], []).append(line)
    return grouped


def markdown(line: Record) -> str:
    """Put a question, its reference and the answer of a step on a page."""
    parts = [("Question", line.get("question")), ("Reference", line.get("reference")), ("Answer", line.get("answer"))]
    text = "\n\n".join(f"**{title}**\n\n{_indented(value)}" for title, value in parts if isinstance(value, str))
    return text + ("" if line.get("ended", True) else "\n\n(cut: it had not ended)")


def plain_settings(settings: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """Return values that every client knows; what is not set is left out."""
    return {
        name: value if isinstance(value, (str, int, float, bool)) else ",".join(map(str, value))
        for name, value in settings.items()
        if value is not None and value != "" and value != []
    }


def _indented(text: str) -> str:
    """Keep a text from being read as markup."""
    return "\n".join("    " + line for line in text.splitlines() or [""])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
