"""The training rows that a run has learned worst, and questions that are there with other answers: often wrong rows."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune._native import core
from ggtune.data.dataset import LoadReport
from ggtune.data.samples import Sample
from ggtune.errors import GgtuneError
from ggtune.evaluate.evaluation_loss import losses_of
from ggtune.evaluate.side_by_side import shortened
from ggtune.evaluate.subject import Subject, open_subject
from ggtune.evaluate.subject_text import SubjectText
from ggtune.files import replace_text
from ggtune.train.questions import Part, Split, part_of, questions_of
from ggtune.train.samples import read_samples

if TYPE_CHECKING:
    from ggtune._core import Model

FILE = "worst_rows.json"
MOST = 10
_SECONDS = 20.0
_AT_ONCE = 64  # samples between two looks at the clock
_MOST_LOOKED_AT = 5000
_MOST_CONTRADICTIONS = 20
_SHOWN = 120  # characters of a question or answer on a line


@dataclass(frozen=True)
class WorstRow:
    """A row of the training data, and what the tuned model makes of it."""

    row: int  # as the data's LoadReport numbers it
    where: str  # file and row
    loss: float  # nats per target token
    n_targets: int
    question: str
    answer: str


@dataclass(frozen=True)
class WorstRows:
    """The rows with the highest loss, the worst first, and rows that contradict others."""

    rows: tuple[WorstRow, ...]
    mean: float  # loss per token of all rows that were looked at
    contradictions: tuple[tuple[str, str], ...]  # (row, the row that has another answer to its question)
    n_contradictions: int
    n_looked_at: int
    n_rows: int
    seconds: float
    step: int | None = None  # of the run

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``worst_rows.json``."""
        contradictions = [{"where": where, "like": like} for where, like in self.contradictions]
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "contradictions": contradictions}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "WorstRows":
        """Undo :meth:`to_dict`. Raises :class:`KeyError`, :class:`TypeError` or :class:`ValueError` for others."""
        return replace(
            cls(**values),
            rows=tuple(WorstRow(**row) for row in values["rows"]),
            contradictions=tuple((str(one["where"]), str(one["like"])) for one in values["contradictions"]),
        )

    def lines(self, *, shown: int = MOST) -> list[str]:
        """Say them for a terminal."""
        found = []
        if self.rows:
            looked = "" if self.n_looked_at >= self.n_rows else f" of {self.n_looked_at} drawn from {self.n_rows}"
            found.append(
                f"Training rows that were learned worst{looked} (loss per token; {self.mean:.2f} on average): often "
                "they are wrong."
            )
            for row in self.rows[:shown]:
                question, answer = (" ".join(shortened(t, _SHOWN).split()) for t in (row.question, row.answer))
                found.append(f"  {row.loss:5.2f}  {row.where}: {question}" + (f" -> {answer}" if answer else ""))
        if self.n_contradictions:
            listed = ", ".join(f"{where} and {like}" for where, like in self.contradictions[:3])
            more = f", ... ({self.n_contradictions} in all)" if self.n_contradictions > 3 else ""
            found.append(f"The same question with another answer: {listed}{more}")
        return found

    def line(self) -> str:
        """One sentence for the end of a run, "" where there is nothing to say."""
        if not self.rows:
            return ""
        listed = ", ".join(f"{row.where} ({row.loss:.1f})" for row in self.rows[:3])
        n = self.n_contradictions
        more = f"; {n} rows contradict others" if n > 1 else "; 1 row contradicts another" if n else ""
        return f"Rows learned worst, often wrong ones (mean loss {self.mean:.1f}): {listed}{more} (all in {FILE})"


def worst_rows(
    run: Path | Subject, *, threads: int = 0, seconds: float = _SECONDS, most: int = MOST, split: Split = "training"
) -> WorstRows:
    """Measure the training rows of a run with its adapter.

    Of more rows than fit into the time a random part is looked at. Raises :class:`GgtuneError`.
    """
    started = time.monotonic()
    subject = run if isinstance(run, Subject) else open_subject(SubjectText(run=Path(run), which="auto"))
    config = subject.config
    if config is None:
        raise GgtuneError(f"{subject.model} is no run: which rows it was trained on is unknown")
    model = core.Model(str(subject.model))
    samples = read_samples(config, model, now=subject.started)
    part = part_of(config, samples, split)
    order = np.random.default_rng([config.seed, 7]).permutation(len(part.samples))[:_MOST_LOOKED_AT].tolist()
    measured: list[tuple[float, int, int]] = []  # loss per token, targets, index
    loss_sum = weight_sum = 0.0
    with subject.adapter_files() as files:
        measure = losses_of(
            subject,
            model,
            context=samples.context,
            threads=threads or config.threads,
            precision=config.precision,
            micro_batch_tokens=config.micro_batch_tokens,
            adapter_files=files,
        )
        for begin in range(0, len(order), _AT_ONCE):
            chosen = order[begin : begin + _AT_ONCE]
            for place, found in measure.of([part.samples[i] for i in chosen]):
                if found.weight > 0:
                    loss_sum, weight_sum = loss_sum + found.loss, weight_sum + found.weight
                    measured.append((found.loss / found.weight, found.n_targets, chosen[place]))
            if time.monotonic() - started > seconds:
                break
    # a loss that is not finite is the worst of all
    measured.sort(key=lambda one: (math.isfinite(one[0]), -one[0] if math.isfinite(one[0]) else 0.0, one[2]))
    rows = _rows(part, model, _distinct(part.samples, measured)[:most])
    pairs = _contradictions(part.data.report)
    mean = loss_sum / weight_sum if weight_sum else math.nan
    looked_at, n_rows = len(measured), len(part.samples)
    seconds = time.monotonic() - started
    first = pairs[:_MOST_CONTRADICTIONS]
    return WorstRows(rows, mean, first, len(pairs), looked_at, n_rows, round(seconds, 3), subject.step)


def _distinct(samples: Sequence[Sample], measured: Sequence[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Each row once: with --repeat it is there several times, and of a long one there are several samples."""
    found: dict[int, tuple[float, int, int]] = {}
    for one in measured:
        found.setdefault(samples[one[2]].row, one)
    return list(found.values())


def _rows(part: Part, model: "Model", worst: Sequence[tuple[float, int, int]]) -> tuple[WorstRow, ...]:
    questions = questions_of(Part(part.config, part.data, [part.samples[i] for _, _, i in worst]), model)
    return tuple(
        WorstRow(one.row, one.where, loss, n_targets, one.question, one.reference)
        for (loss, n_targets, _), one in zip(worst, questions, strict=True)
    )


def _contradictions(report: LoadReport) -> tuple[tuple[str, str], ...]:
    """Rows with another answer to a question that was there before, and that row."""

    def named(number: int) -> str:
        file, row = report.place(number)
        return f"{file.name}:{row}"

    return tuple((named(row), named(other)) for row, other in report.doubts.pairs("contradiction"))


def write_worst_rows(folder: Path, found: WorstRows) -> None:
    """Write ``worst_rows.json``. Raises :class:`ggtune.files.WriteError`."""
    values = found.to_dict()
    for row in values["rows"]:
        row["loss"] = row["loss"] if math.isfinite(row["loss"]) else None
    values["mean"] = found.mean if math.isfinite(found.mean) else None
    replace_text(folder / FILE, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_worst_rows(folder: Path) -> WorstRows | None:
    """Read it; None where there is none, or one that is not whole."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        for row in values["rows"]:
            row["loss"] = math.nan if row["loss"] is None else row["loss"]
        values["mean"] = math.nan if values["mean"] is None else values["mean"]
        return WorstRows.from_dict(values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
