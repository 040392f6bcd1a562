"""Samples as questions: what a model is asked with, what the reference says, and where that stands in the data."""

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ggtune.config import TrainConfig
from ggtune.data.conversation import Conversation
from ggtune.data.dataset import Dataset
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.samples import Sample
from ggtune.data.sft import question_tag
from ggtune.data.sources import files_of, open_source
from ggtune.data.templates import PromptTemplate, Template
from ggtune.data.thinking import THINK, split_thought
from ggtune.data.tokenization import Tokenizer
from ggtune.errors import DataError
from ggtune.setting_texts import DataPart, Holdout
from ggtune.train.samples import RunSamples

Split = Literal["held-out", "training", "all"]
SPLITS: tuple[Split, ...] = ("held-out", "training", "all")


@dataclass(frozen=True)
class Part:
    """Samples of one data set, with the settings that name its files."""

    config: TrainConfig
    data: Dataset
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Question:
    """What a sample asks; of a conversation its last turn, with all before it in the prompt.

    ``prompt`` is empty for plain text, which asks nothing.
    """

    row: int  # as the data's LoadReport numbers it
    where: str  # file and row
    question: str
    reference: str
    category: str | None
    prompt: tuple[int, ...]  # token ids

    @property
    def asks(self) -> bool:
        """Whether there is something to answer."""
        return bool(self.prompt) and bool(self.reference)


def part_of(config: TrainConfig, samples: RunSamples, split: Split) -> Part:
    """Choose among the samples of a run. Raises :class:`DataError` where that part has none."""
    if split == "all":
        found = Part(config, samples.data, samples.data.samples)
    elif split == "training":
        found = Part(config, samples.data, samples.training)
    elif samples.apart is not None:
        path = Holdout.parse(config.holdout).path
        apart = dataclasses.replace(config, data=path, more_data=(), repeat=1, holdout="0")
        found = Part(apart, samples.apart, samples.held_out)
    else:
        found = Part(config, samples.data, samples.held_out)
    if not len(found.samples):
        raise DataError(
            f"{config.data}: nothing of it was held out: give --split all or training, or other data by --data"
            if split == "held-out"
            else f"{config.data}: there is no sample in it"
        )
    return found


def questions_of(part: Part, tokenizer: Tokenizer) -> list[Question]:
    """Make a question of each sample; the data are read once more for their own texts.

    Raises :class:`DataError` where they can't be, or have become others.
    """
    records = _records(part)
    return [_question(sample, records.get(sample.row), part, tokenizer) for sample in part.samples]


def _records(part: Part) -> dict[int, Conversation]:
    """The conversations of the samples' rows, by their numbers."""
    wanted = {sample.row for sample in part.samples}
    options = ReadOptions.of_settings(part.config.to_dict(), skip_bad=True)
    before = [file.before for file in part.data.report.files] or [0]
    paths = [part.config.data, *(DataPart.parse(text).path for text in part.config.more_data)]
    files = [file for path in paths for file in files_of(path)]
    if len(files) != len(before):
        raise DataError(f"{part.config.data}: there are other files now than when it was read first")
    found: dict[int, Conversation] = {}
    for file, begin in zip(files, before, strict=True):
        for item in open_source(file, options).items:
            if not isinstance(item, Conversation):  # a text has its questions in its tokens alone
                break
            if begin + item.row in wanted:
                found[begin + item.row] = item
                if len(found) == len(wanted):
                    return found
    return found


def _question(sample: Sample, record: Conversation | None, part: Part, tokenizer: Tokenizer) -> Question:
    report = part.data.report
    file, row = report.place(sample.row)
    prompt = tuple(sample.tokens[: sample.n_prompt].tolist())
    answer = sample.tokens[sample.n_prompt :].tolist()
    while answer and tokenizer.is_end_token(answer[-1]):
        answer.pop()
    learned = tokenizer.detokenize(answer, special=False).decode("utf-8", "replace")
    if report.plain:
        question, reference, prompt = "", learned, ()
    elif record is not None:
        question, reference = _of_record(record, learned)
    else:
        question = _asked(part.data.template, tokenizer.detokenize(prompt, special=True).decode("utf-8", "replace"))
        reference = without_thought(learned)
    category = getattr(record, "category", "") or None
    return Question(sample.row, f"{file.name}:{row}", question, reference, category, prompt)


def _of_record(record: Conversation, learned: str) -> tuple[str, str]:
    """Question and answer of the turn that a sample ends with; ``learned`` are the words it ends with."""
    turns = record.turns
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    words = learned.strip()
    # a sample may end at an earlier turn, or be cut inside its last one
    last = next(
        (i for i in reversed(answers) if (text := turns[i].text.strip()) and (text in words or text.startswith(words))),
        answers[-1],
    )
    asked = next((turn.text for turn in reversed(turns[:last]) if turn.role != "assistant"), "")
    return asked.strip(), turns[last].text.strip()


def _asked(template: Template | None, prompt: str) -> str:
    """The question in a rendered prompt, or all of it where the template can't be taken off."""
    if isinstance(template, PromptTemplate):
        with suppress(ValueError):
            return template.parse(prompt)[1]
    elif template is not None and (tag := question_tag(template)):
        return prompt.rpartition(tag)[2].removesuffix(template.after_question).strip()
    return prompt.strip()


def without_thought(answer: str) -> str:
    """An answer without the thought that it starts with."""
    return split_thought("", answer, (THINK,))[1].strip()
