"""A few fixed questions, asked of the base before a training and of what comes out of it: the change to be seen."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune.config import TrainConfig
from ggtune.data.conversation import Conversation
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.sources import open_source
from ggtune.data.templates import Template
from ggtune.data.tokenization import encode_prompt
from ggtune.errors import DataError, GgtuneError
from ggtune.evaluate.evaluation_answers import given_answers
from ggtune.evaluate.questions import Part, Question, part_of, questions_of
from ggtune.evaluate.side_by_side import shortened, side_by_side
from ggtune.files import replace_text
from ggtune.train.samples import RunSamples

if TYPE_CHECKING:
    from ggtune._core import Model

FILE = "before_after.jsonl"
DEFAULT_QUESTIONS = "5"
_LOOKED_AT = 200  # held-out samples that questions are drawn from, the first ones: the data are read up to them again
_LEAST_TOKENS, _MOST_TOKENS = 64, 256  # of an answer, between which it gets twice the longest reference
_WITHOUT_REFERENCE = 128
_SHOWN = 5


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


def parse_questions(text: str) -> int | Path:
    """Read what the user says of the questions: a number of them, or a file. Raises :class:`GgtuneError`."""
    if text.isascii() and text.isdecimal():
        return int(text)
    path = Path(text)
    if not path.is_file():
        raise GgtuneError(f"--questions {text}: it is neither a number nor a file that is there")
    return path


def chosen_questions(text: str, config: TrainConfig, samples: RunSamples, model: "Model") -> list[BeforeAfter]:
    """Take the questions from a file, or draw so many from the held-out rows (without any: the trained ones).

    None where the data are plain text and no file is given. Raises :class:`GgtuneError` for a file that can't be used.
    """
    wanted = parse_questions(text)
    if isinstance(wanted, Path):
        template = samples.data.template
        if template is None:
            raise GgtuneError(f"--questions {wanted}: the training is on plain text, which has no form of a question")
        system = config.system or samples.data.report.system
        return list(_from_file(wanted, config, model, template, system))
    if not wanted:
        return []
    return _drawn(wanted, config, samples, model)


def _drawn(n: int, config: TrainConfig, samples: RunSamples, model: "Model") -> list[BeforeAfter]:
    held_out = len(samples.held_out) > 0
    part = part_of(config, samples, "held-out" if held_out else "training")
    first = part.samples[: min(_LOOKED_AT, len(part.samples))]
    prompts: dict[tuple[int, ...], int] = {}
    for i in np.random.default_rng([config.seed, 5]).permutation(len(first)):
        sample = first[int(i)]
        prompts.setdefault(tuple(sample.tokens[: sample.n_prompt].tolist()), int(i))
    chosen = [first[i] for i in sorted(list(prompts.values())[:n])]
    asked = [one for one in questions_of(Part(part.config, part.data, chosen), model) if one.asks]
    return [_of_row(one, held_out=held_out) for one in asked]


def _of_row(one: Question, *, held_out: bool) -> BeforeAfter:
    return BeforeAfter(one.question, one.reference, row=one.row, where=one.where, held_out=held_out, prompt=one.prompt)


def _from_file(
    path: Path, config: TrainConfig, model: "Model", template: Template, system: str | None
) -> Iterator[BeforeAfter]:
    n = 0
    for where, question, reference in _pairs(path, config):
        n += 1
        prompt = tuple(encode_prompt(model, template, question, system).tolist())
        if model.n_ctx_train and len(prompt) + _LEAST_TOKENS > model.n_ctx_train:
            raise DataError(
                f"{path}: {where}: the question has {len(prompt)} tokens; the model's context is {model.n_ctx_train}"
            )
        yield BeforeAfter(question, reference, where=f"{path.name}:{where}", prompt=prompt)
    if not n:
        raise DataError(f"{path}: there is no question in it")


def _pairs(path: Path, config: TrainConfig) -> Iterator[tuple[int, str, str | None]]:
    """Row or line, question, reference: a question on each line of a text, or whatever format has both."""
    if path.suffix.lower() in ("", ".txt", ".md"):
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeError) as error:
            raise DataError(f"{path}: can't be read as UTF-8 text: {error}") from error
        yield from ((i, line.strip(), None) for i, line in enumerate(lines, start=1) if line.strip())
        return
    options = ReadOptions.of_settings({**config.to_dict(), "data_format": ""})
    source = open_source(path, options)
    for item in source.items:
        if not isinstance(item, Conversation):
            raise DataError(f"{path}: holds texts, no questions: give a .txt file with a question on each line")
        asked = [turn.text for turn in item.turns if turn.role == "user"]
        answers = [turn.text for turn in item.turns if turn.role == "assistant"]
        if asked:
            yield item.row, asked[-1], answers[-1] if answers else None
    source.findings.check(path, options)


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
    return (answer or "") + ("" if ended else " [cut]")
