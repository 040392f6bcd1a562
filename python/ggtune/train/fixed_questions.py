"""A few questions that are asked again and again: drawn from a run's samples, or from a file of the user's."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ggtune.config import TrainConfig
from ggtune.data.question_file import questions_in
from ggtune.data.readers.reader import ReadOptions
from ggtune.data.tokenization import encode_prompt
from ggtune.errors import DataError, GgtuneError
from ggtune.train.questions import Part, part_of, questions_of
from ggtune.train.samples import RunSamples

if TYPE_CHECKING:
    from ggtune._core import Model

_LOOKED_AT = 200  # samples that questions are drawn from, the first ones: the data are read up to them again
_ROOM_TOKENS = 64  # for an answer


@dataclass(frozen=True)
class FixedQuestion:
    """A question, as the model is asked it."""

    question: str
    reference: str | None  # None where nobody has said what is right
    prompt: tuple[int, ...]  # token ids
    row: int | None  # of the data; None for a question from a file of its own
    where: str  # file and row or line
    held_out: bool


def number_or_file(text: str, option: str) -> int | Path:
    """Read what the user says of the questions: a number of them, or a file. Raises :class:`GgtuneError`."""
    if text.isascii() and text.isdecimal():
        return int(text)
    path = Path(text)
    if not path.is_file():
        raise GgtuneError(f"{option} {text}: it is neither a number nor a file that is there")
    return path


def fixed_questions(
    text: str, config: TrainConfig, samples: RunSamples, model: "Model", option: str = "--questions"
) -> list[FixedQuestion]:
    """Take the questions from a file, or draw so many from the held-out rows (without any: the trained ones).

    None where the data are plain text and no file is given. Raises :class:`GgtuneError` for a file that can't be used;
    ``option`` is what the user calls ``text``.
    """
    wanted = number_or_file(text, option)
    if isinstance(wanted, Path):
        return _from_file(wanted, config, samples, model, option)
    return _drawn(wanted, config, samples, model) if wanted else []


def _drawn(n: int, config: TrainConfig, samples: RunSamples, model: "Model") -> list[FixedQuestion]:
    held_out = len(samples.held_out) > 0
    part = part_of(config, samples, "held-out" if held_out else "training")
    first = part.samples[: min(_LOOKED_AT, len(part.samples))]
    prompts: dict[tuple[int, ...], int] = {}
    for i in np.random.default_rng([config.seed, 5]).permutation(len(first)):
        sample = first[int(i)]
        prompts.setdefault(tuple(sample.tokens[: sample.n_prompt].tolist()), int(i))
    chosen = [first[i] for i in sorted(list(prompts.values())[:n])]
    return [
        FixedQuestion(one.question, one.reference, one.prompt, one.row, one.where, held_out)
        for one in questions_of(Part(part.config, part.data, chosen), model)
        if one.asks
    ]


def _from_file(
    path: Path, config: TrainConfig, samples: RunSamples, model: "Model", option: str
) -> list[FixedQuestion]:
    template = samples.data.template
    if template is None:
        raise GgtuneError(f"{option} {path}: the training is on plain text, which has no form of a question")
    system = config.system or samples.data.report.system
    found = []
    for where, question, reference in questions_in(
        path, ReadOptions.of_settings({**config.to_dict(), "data_format": ""})
    ):
        prompt = tuple(encode_prompt(model, template, question, system).tolist())
        if model.n_ctx_train and len(prompt) + _ROOM_TOKENS > model.n_ctx_train:
            raise DataError(
                f"{path}: {where}: the question has {len(prompt)} tokens; the model's context is {model.n_ctx_train}"
            )
        found.append(FixedQuestion(question, reference, prompt, None, f"{path.name}:{where}", held_out=False))
    if not found:
        raise DataError(f"{path}: there is no question in it")
    return found
