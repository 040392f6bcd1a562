"""A few fixed questions, asked of the base before a training and of what comes out of it: the change to be seen."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggtune.config import TrainConfig
from ggtune.data.templates import Template
from ggtune.evaluate.evaluation_answers import given_answers
from ggtune.evaluate.side_by_side import shortened, side_by_side
from ggtune.files import replace_text
from ggtune.train.fixed_questions import fixed_questions
from ggtune.train.samples import RunSamples

if TYPE_CHECKING:
    from ggtune._core import Model

FILE = "before_after.jsonl"
DEFAULT_QUESTIONS, OPTION = "5", "--questions"
_LEAST_TOKENS, _MOST_TOKENS = 64, 256  # of an answer, between which it gets twice the longest reference
_WITHOUT_REFERENCE = 128
_SHOWN = 5
_MOST_CHARACTERS = 300  # of an answer that is shown


@dataclass(frozen=True)
class BeforeAfter:
    """A question and its answers; None for one that was not given yet."""

    question: str
    reference: str | None  # None where nobody has said what is right
    before: str | None = None
    after: str | None = None
    before_ended: bool | None = None
    after_ended: bool | None = None
    row: int | None = None  # of the data; None for a question from a file of its own
    where: str = ""  # file and row or line
    held_out: bool = False
    prompt: tuple[int, ...] = ()  # token ids

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BeforeAfter":
        """Undo ``asdict``. Raises :class:`TypeError` or :class:`ValueError` for something else."""
        found = cls(**values)
        return replace(found, prompt=tuple(int(token) for token in found.prompt))


def chosen_questions(text: str, config: TrainConfig, samples: RunSamples, model: "Model") -> list[BeforeAfter]:
    """Choose the questions, as :func:`~ggtune.train.fixed_questions.fixed_questions` does; raises as that."""
    return [BeforeAfter(**asdict(one)) for one in fixed_questions(text, config, samples, model, OPTION)]


def asked(
    questions: Sequence[BeforeAfter],
    model: "Model",
    template: Template | None,
    *,
    adapters: Sequence[tuple[str, float]] = (),
    threads: int = 0,
    after: bool = False,
) -> list[BeforeAfter]:
    """Ask them, the likeliest token each time, and note the answers ``before`` or ``after``. Raises GgtuneError."""
    if not questions:
        return []
    found = given_answers(
        model,
        [one.prompt for one in questions],
        adapters=adapters,
        stops=template.stops if template is not None else (),
        max_tokens=_most_tokens(questions, model),
        threads=threads,
    )
    given = dict(found)
    answers = [(given[i].text, given[i].ended) for i in range(len(questions))]
    if after:
        return [replace(q, after=text, after_ended=end) for q, (text, end) in zip(questions, answers, strict=True)]
    return [replace(q, before=text, before_ended=end) for q, (text, end) in zip(questions, answers, strict=True)]


def _most_tokens(questions: Sequence[BeforeAfter], model: "Model") -> int:
    lengths = [len(model.tokenize(q.reference, parse_special=False)) for q in questions if q.reference]
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, 2 * max(lengths))) if lengths else _WITHOUT_REFERENCE


def to_text(questions: Sequence[BeforeAfter]) -> str:
    """What ``before_after.jsonl`` holds."""
    return "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in questions)


def write(folder: Path, questions: Sequence[BeforeAfter]) -> None:
    """Write ``before_after.jsonl``. Raises :class:`ggtune.files.WriteError`."""
    replace_text(folder / FILE, to_text(questions))


def read(folder: Path) -> list[BeforeAfter]:
    """Read it; nothing where there is none, or one that is not whole."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
        return [BeforeAfter.from_dict(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def lines(questions: Sequence[BeforeAfter], *, width: int = 100, shown: int = _SHOWN) -> list[str]:
    """Say them for a terminal, before and after beside each other."""
    done = [one for one in questions if one.before is not None and one.after is not None]
    found = []
    for one in done[:shown]:
        found += ["", f"  {one.where}: {shortened(one.question)}"]
        titles, texts = ["before", "after"], [_said(one.before, one.before_ended), _said(one.after, one.after_ended)]
        if one.reference:
            titles.append("reference")
            texts.append(one.reference)
        found += [f"  {line}" for line in side_by_side(titles, texts, width - 2)]
    if len(done) > shown:
        found += ["", f"  ... and {len(done) - shown} more in {FILE}"]
    return found


def _said(answer: str | None, ended: bool | None) -> str:
    return shortened(answer or "", _MOST_CHARACTERS) + ("" if ended else " [cut]")
