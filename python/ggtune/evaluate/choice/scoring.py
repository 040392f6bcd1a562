"""Choices by their log-probability behind the prompt, and the scores of that."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ggtune.errors import GgtuneError
from ggtune.evaluate.choice.formats import ChoiceFormat, ChoiceQuestion
from ggtune.evaluate.log_probs import Likelihood, Text

if TYPE_CHECKING:
    from ggtune._core import Model

_SHOT_END = "\n\n"


@dataclass(frozen=True)
class Scored:
    """A question and what a model makes of its choices."""

    question: ChoiceQuestion
    log_probs: tuple[float, ...]  # sums over the tokens of each choice

    @property
    def chosen(self) -> int:
        """The most probable choice."""
        return int(np.argmax(self.log_probs))

    @property
    def chosen_norm(self) -> int:
        """The most probable choice for each of its characters."""
        return self._chosen_by([len(choice) for choice in self.question.choices])

    @property
    def chosen_bytes(self) -> int:
        """The most probable choice for each of its bytes in UTF-8."""
        return self._chosen_by([len(choice.encode()) for choice in self.question.choices])

    def _chosen_by(self, lengths: Sequence[int]) -> int:
        return int(np.argmax(np.array(self.log_probs) / np.array(lengths)))

    @property
    def mass(self) -> float:
        """Share of the choices' probability that the right ones have."""
        shifted = np.exp(np.array(self.log_probs) - max(self.log_probs))
        return float(shifted[list(self.question.right)].sum() / shifted.sum())

    def score(self, name: str) -> float:
        """Give one by its name: acc, acc_norm, acc_bytes or mass."""
        if name == "mass":
            return self.mass
        chosen = {"acc": self.chosen, "acc_norm": self.chosen_norm, "acc_bytes": self.chosen_bytes}[name]
        return float(chosen in self.question.right)


@dataclass(frozen=True)
class Score:
    """A mean over questions with its standard error, NaN for a single question."""

    value: float
    stderr: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Score":
        """Take the mean; the error is the sample's standard deviation over the root of its size."""
        n = len(values)
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan)

    def text(self) -> str:
        """``0.42 ± 0.07``: the standard error behind it."""
        return f"{self.value:.4f}" + (f" ± {self.stderr:.4f}" if math.isfinite(self.stderr) else "")


@dataclass(frozen=True)
class ChoiceResult:
    """All questions of a file."""

    form: ChoiceFormat
    shots: int
    questions: tuple[Scored, ...]
    scores: dict[str, Score]
    n_cut: int = 0  # questions whose prompt was cut to the context
    seconds: float = 0.0

    def values(self, name: str) -> list[float]:
        """Give one score of each question, by its name among :attr:`scores`."""
        return [scored.score(self.form.scores[name]) for scored in self.questions]

    def line(self) -> str:
        """Say it on one line."""
        scores = ", ".join(f"{name} {score.text()}" for name, score in self.scores.items())
        return f"{self.form.name}, {len(self.questions)} questions, {self.shots}-shot: {scores}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file, with the questions' own."""
        return {
            "format": self.form.name,
            "shots": self.shots,
            "n_questions": len(self.questions),
            "n_cut": self.n_cut,
            "scores": {
                name: {"value": score.value, "stderr": score.stderr if math.isfinite(score.stderr) else None}
                for name, score in self.scores.items()
            },
            "seconds": self.seconds,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Plain values of each question, for a line of JSON each."""
        return [
            {
                "row": scored.question.row,
                "prompt": scored.question.prompt,
                "choices": list(scored.question.choices),
                "right": list(scored.question.right),
                "log_probs": list(scored.log_probs),
                "chosen": scored.chosen,
                "chosen_norm": scored.chosen_norm,
            }
            for scored in self.questions
        ]


def score_choices(
    likelihood: Likelihood,
    form: ChoiceFormat,
    questions: Sequence[ChoiceQuestion],
    *,
    shots: int = 0,
    examples: Sequence[ChoiceQuestion] | None = None,
    done: Callable[[int], object] = lambda n: None,
) -> ChoiceResult:
    """Score questions, each behind the first ``shots`` of ``examples``, or of the other questions where there are none.

    ``done`` is told after each question. Raises :class:`GgtuneError` for more shots than there are.
    """
    started = time.monotonic()
    encoder = _Encoder(likelihood.model)
    encoded: list[list[_Encoded]] = []
    for question in questions:
        pool = [other for other in (questions if examples is None else examples) if other != question][:shots]
        if len(pool) < shots:
            raise GgtuneError(f"there are {len(pool)} questions to show as examples, fewer than --shots {shots}")
        before = form.description([question, *pool]) + "".join(example.solved + _SHOT_END for example in pool)
        encoded.append(encoder.texts(before + question.prompt, question.choices))
    answers = likelihood.each([part.text for parts in encoded for part in parts])
    found = []
    for question, parts in zip(questions, encoded, strict=True):
        sums: list[float] = []
        for part in parts:
            for log_probs, at in zip(next(answers), part.first, strict=True):
                sums.append(float(log_probs[at:].sum(dtype=np.float64)))
        found.append(Scored(question, tuple(sums)))
        done(len(found))
    scores = {name: Score.of([scored.score(which) for scored in found]) for name, which in form.scores.items()}
    return ChoiceResult(form, shots, tuple(found), scores, encoder.n_cut, time.monotonic() - started)


@dataclass(frozen=True)
class _Encoded:
    """Choices that begin alike; of each end, the first ``first`` tokens are still prompt."""

    text: Text
    first: list[int]


class _Encoder:
    """Prompts with their choices to tokens: both are tokenized as one text, which is then cut where the prompt ends."""

    def __init__(self, model: "Model") -> None:
        self._model = model
        self._bos = [model.bos_token] if model.add_bos and model.bos_token >= 0 else []
        self.n_cut = 0

    def texts(self, prompt: str, choices: Sequence[str]) -> list[_Encoded]:
        """Give the choices behind what they have in common: all together, or one by one where that is nothing."""
        kept = prompt.rstrip()  # white space at the end belongs to what follows
        n_prompt = len(self._tokens(kept))
        context = self._model.n_ctx_train
        whole, n_choice, cut = [], [], False
        for choice in choices:
            tokens = self._tokens(f"{kept}{prompt[len(kept) :]} {choice}")
            n = len(tokens) - n_prompt
            if n < 1 or (context and n > context):
                raise GgtuneError(f"the choice {choice[:60]!r} can't be scored: it is {n} tokens behind its prompt")
            n_choice.append(n)
            whole.append(tokens[-context - 1 :] if context else tokens)
            cut = cut or len(whole[-1]) < len(tokens)
        self.n_cut += cut
        n_same = min(_n_same(whole), *(len(tokens) - n for tokens, n in zip(whole, n_choice, strict=True)))
        groups = [[i] for i in range(len(whole))] if n_same == 0 else [list(range(len(whole)))]
        found = []
        for group in groups:
            n = n_same or len(whole[group[0]]) - n_choice[group[0]]
            ends = [whole[i][n:] for i in group]
            first = [len(end) - n_choice[i] for end, i in zip(ends, group, strict=True)]
            found.append(_Encoded((whole[group[0]][:n], ends), first))
        return found

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self._model.tokenize(text, parse_special=True).tolist()
        return found if found[: len(self._bos)] == self._bos else self._bos + found


def _n_same(lists: Sequence[Sequence[int]]) -> int:
    """Count the tokens that all lists begin with."""
    shortest = min(lists, key=len)
    for i, token in enumerate(shortest):
        if any(other[i] != token for other in lists):
            return i
    return len(shortest)
