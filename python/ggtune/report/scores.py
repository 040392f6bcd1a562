"""Scores of a report, each with its interval: of the evaluations in run folders, and of their comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ggtune.report.blocks import Answer, Block, Paragraph, Question, Questions, Table
from ggtune.report.curves import number
from ggtune.report.facts import UNKNOWN
from ggtune.report.reading import RunRecord, objects
from ggtune.report.texts import shown_text
from ggtune.scores.metrics import METRICS
from ggtune.scores.statistics import Estimate

_MOST_COLUMNS = 12
_MOST_LABEL = 60
_MOST_CHANGED = 3  # questions that got better or worse, and as many that got worse
_INTERVALS = Paragraph("Values with their 95 % intervals: where two overlap much, the difference may be chance.")


def score_blocks(runs: Sequence[RunRecord], *, examples: bool = True) -> list[Block]:
    """A table of all evaluations, and what the comparison of a run says; ``examples``: with questions and answers."""
    single = len(runs) == 1
    blocks: list[Block] = []
    columns = [(run, found) for run in runs for found in run.evaluations][:_MOST_COLUMNS]
    compared = set(_labels(runs[0])) if single else set()
    if any(found.label not in compared for _, found in columns):
        names = [name for name in METRICS if any(name in found.scores for _, found in columns)]
        labels = [shown_text(found.label, _MOST_LABEL) for _, found in columns]
        head = [
            "",
            *(label if single else f"{run.name}: {label}" for (run, _), label in zip(columns, labels, strict=True)),
        ]
        rows = [
            [METRICS[name].title, *(_estimate(found.scores.get(name), name) for _, found in columns)] for name in names
        ]
        rows.append(["Samples", *(str(found.n_samples) for _, found in columns)])
        blocks += [
            _INTERVALS,
            Table(head, rows, numbers=True),
        ]
    for run in runs:
        blocks += comparison_blocks(run, named=not single, examples=examples)
    return blocks[:1] + [block for block in blocks[1:] if block is not _INTERVALS]


def comparison_blocks(run: RunRecord, *, named: bool = False, examples: bool = True) -> list[Block]:
    """Say what ``comparison.json`` says: each score of each subject, and whether it is better than the first one's."""
    labels = [shown_text(label, _MOST_LABEL) for label in _labels(run)]
    scores = run.comparison.get("scores")
    if len(labels) < 2 or not isinstance(scores, Mapping):
        return []
    head = ["", labels[0]]
    for label in labels[1:]:
        head += [label, f"{label} against {labels[0]}"]
    rows = [
        [str(score.get("title") or name), *_compared(str(name), score, len(labels))]
        for name, score in scores.items()
        if isinstance(score, Mapping)
    ]
    n = run.comparison.get("n_samples")
    title = f"{run.name}: " if named else ""
    title += f"Compared on the same {n} samples" if n else "Compared on the same samples"
    blocks: list[Block] = [Table(head, rows, title=title[:1].upper() + title[1:] if not named else title)]
    return [_INTERVALS, *blocks, *(_changed(run, labels) if examples else ())]


def _labels(run: RunRecord) -> list[str]:
    labels = run.comparison.get("labels")
    return [str(label) for label in labels] if isinstance(labels, list) else []


def _compared(name: str, score: Mapping[str, Any], n: int) -> list[str]:
    values, differences = score.get("values"), score.get("differences")
    cells = []
    for i in range(n):
        cells.append(_value(_at(values, i), name))
        if i:
            cells.append(str(_at(differences, i).get("verdict") or ""))
    return cells


def _changed(run: RunRecord, labels: Sequence[str]) -> list[Block]:
    """The questions whose answers changed most, for better and for worse, with the last of the subjects."""
    rows = objects(run.comparison.get("rows"))
    last = len(labels) - 1
    blocks: list[Block] = []
    for title, sign in (("got better", 1), ("got worse", -1)):
        measured = [(sign * change, row) for row in rows if (change := _change(row, last)) is not None]
        found = sorted((pair for pair in measured if pair[0] > 0), key=lambda pair: -pair[0])
        answered = [row for _, row in found if isinstance(row.get("answers"), list) and any(row["answers"])]
        questions = [
            Question(
                str(row.get("question") or ""),
                [
                    *([Answer("Reference", str(row["reference"]))] if row.get("reference") else []),
                    *(
                        Answer(label, str(answer or ""), kind)
                        for label, answer, kind in zip(labels, row["answers"], _kinds(row, len(labels)), strict=False)
                    ),
                ],
                str(row.get("where") or ""),
            )
            for row in answered[:_MOST_CHANGED]
        ]
        if questions:
            blocks += [
                Paragraph(f"{len(found)} answers; the largest changes:", label=f"What {title}"),
                Questions(questions),
            ]
    return blocks


def _change(row: Mapping[str, Any], subject: int) -> float | None:
    changes = row.get("changes")
    if not isinstance(changes, Sequence) or len(changes) <= subject:
        return None
    return number({"change": changes[subject]}, "change")


def _kinds(row: Mapping[str, Any], n: int) -> list[str]:
    kinds = row.get("kinds")
    found = [str(kind or "") for kind in kinds] if isinstance(kinds, Sequence) else []
    return (found + [""] * n)[:n]


def _at(values: Any, i: int) -> Mapping[str, Any]:
    found = values[i] if isinstance(values, Sequence) and i < len(values) else None
    return found if isinstance(found, Mapping) else {}


def _value(values: Mapping[str, Any], name: str) -> str:
    try:
        return _estimate(Estimate.from_dict(values), name)
    except (KeyError, TypeError, ValueError):
        return UNKNOWN


def _estimate(found: Estimate | None, name: str) -> str:
    if found is None:
        return UNKNOWN
    return found.text(METRICS[name].digits if name in METRICS else 3)
