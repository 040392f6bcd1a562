"""Answers that a run has sampled of itself (``samples.jsonl``), by question: the first, and the latest ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ggtune.run.history import is_number

_MOST_QUESTIONS = 50
_MOST_ANSWERS = 6  # of a question
_LONGEST = 2000  # characters of a text


@dataclass(frozen=True)
class Answer:
    """One answer, and the step after which it was given."""

    step: int
    epoch: float | None
    text: str
    ended: bool  # by itself


@dataclass
class Question:
    """A question, what the data answer, and the run's own answers: the first and the latest."""

    text: str
    reference: str
    answers: list[Answer] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Take a later answer; the same step's takes the place of the one before it."""
        if self.answers and self.answers[-1].step == answer.step:
            self.answers.pop()
        self.answers.append(answer)
        if len(self.answers) > _MOST_ANSWERS:
            del self.answers[1]


class Answers:
    """Takes the lines of ``samples.jsonl``; those of another form are passed over."""

    def __init__(self) -> None:
        self._questions: dict[str, Question] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one line."""
        question, answer, step = record.get("question"), record.get("answer"), record.get("step")
        if not isinstance(question, str) or not isinstance(answer, str) or not is_number(step):
            return
        known = self._questions.get(question)
        if known is None:
            if len(self._questions) >= _MOST_QUESTIONS:
                return
            reference = record.get("reference")
            known = Question(question[:_LONGEST], reference[:_LONGEST] if isinstance(reference, str) else "")
            self._questions[question] = known
        epoch = record.get("epoch")
        ended = record.get("ended") is not False
        known.add(Answer(int(step), float(epoch) if is_number(epoch) else None, answer[:_LONGEST], ended))

    def questions(self) -> list[Question]:
        """Return the questions in the order in which they were first asked."""
        return list(self._questions.values())
