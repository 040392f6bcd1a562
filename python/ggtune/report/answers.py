"""Questions and answers of a report: before and after, while training, and the rows that are learned worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ggtune.report.blocks import Answer, Block, Paragraph, Question, Questions, Table
from ggtune.report.curves import number
from ggtune.report.reading import RunRecord, objects

_MOST_QUESTIONS = 20
_MOST_SAMPLED, _MOST_TIMES = 6, 6
_MOST_WORST = 10
_MOST_SIDE_BY_SIDE = 6  # runs whose answers are shown


def before_after(runs: Sequence[RunRecord], *, most: int = _MOST_QUESTIONS) -> list[Block]:
    """Each question once, with the reference, the base's answer and that of each run; ``most`` of them."""
    shown = [run for run in runs if run.before_after][:_MOST_SIDE_BY_SIDE]
    if not shown:
        return []
    asked: dict[str, list[Answer]] = {}
    for run in shown:
        for row in run.before_after:
            text = str(row.get("question", ""))
            if text not in asked:
                asked[text] = [
                    *_reference(row),
                    Answer("Before", _text(row, "before"), _ending(row.get("before_ended"))),
                ]
            label = "After" if len(runs) == 1 else f"After: {run.name}"
            if row.get("after") is None:  # not yet, or never
                continue
            asked[text].append(Answer(label, _text(row, "after"), _ending(row.get("after_ended"))))
    questions = [Question(text, answers) for text, answers in list(asked.items())[:most]]
    blocks: list[Block] = [Questions(questions)]
    left = len(asked) - len(questions)
    return [*blocks, Paragraph(f"… and {left} more questions in before_after.jsonl.", "note")] if left else blocks


def samples_while_training(run: RunRecord) -> list[Block]:
    """How the answers to the fixed questions changed: the first time, the last and some between."""
    asked: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.samples:
        asked.setdefault(str(row.get("question", "")), []).append(row)
    questions = []
    for text, rows in list(asked.items())[:_MOST_SAMPLED]:
        chosen = _evenly(rows, _MOST_TIMES)
        answers = [Answer(_when(row), _text(row, "answer"), _ending(row.get("ended"))) for row in chosen]
        questions.append(Question(text, [*_reference(rows[0]), *answers]))
    return [Questions(questions)] if questions else []


def worst_rows(run: RunRecord) -> list[Block]:
    """The rows with the highest loss after the training, which are often wrong, and contradictions."""
    rows, contradictions = (objects(run.worst_rows.get(key)) for key in ("rows", "contradictions"))
    if not rows and not contradictions:
        return []
    looked_at, n_rows = run.worst_rows.get("n_looked_at"), run.worst_rows.get("n_rows")
    of = f" ({looked_at} of {n_rows} rows were looked at)" if looked_at and n_rows else ""
    blocks: list[Block] = []
    if rows:
        blocks.append(Paragraph(f"Rows with a high loss after the training are often wrong or cut: look at them{of}."))
        questions = []
        for row in rows[:_MOST_WORST]:
            loss = number(row, "loss")
            note = _text(row, "where") + (f", loss {loss:.3f}" if loss is not None else "")
            questions.append(
                Question(_text(row, "question"), [Answer("Answer in the data", _text(row, "answer"))], note)
            )
        blocks.append(Questions(questions))
    if contradictions:
        pairs = [[_text(row, "where"), _text(row, "like")] for row in contradictions[:_MOST_QUESTIONS]]
        title = f"The same question with another answer: {len(contradictions)}"
        blocks.append(Table(("row", "is answered differently in"), pairs, title=title, folded=len(pairs) > _MOST_WORST))
    return blocks


def _reference(row: Mapping[str, Any]) -> list[Answer]:
    text = _text(row, "reference")
    return [Answer("Reference", text)] if text else []


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value)


def _ending(ended: Any) -> str:
    return "cut: it did not end by itself" if ended is False else ""


def _when(row: Mapping[str, Any]) -> str:
    step, epoch = row.get("step"), number(row, "epoch")
    if step == 0:
        return "Before training"
    return f"Step {step}" + (f", epoch {epoch:.2f}" if epoch is not None else "")


def _evenly(rows: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    if len(rows) <= n:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (n - 1))] for i in range(n)]
