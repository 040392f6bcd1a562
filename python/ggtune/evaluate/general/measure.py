"""Perplexity on a general text and answers to general questions, of a model with or without adapters."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ggtune.data.readers.decoding import encoding_of, open_text
from ggtune.data.samples import text_tokens
from ggtune.errors import DataError
from ggtune.evaluate.choice.files import read_choices
from ggtune.evaluate.choice.scoring import Scored, score_choices
from ggtune.evaluate.log_probs import Adapters, Likelihood, Text
from ggtune.scores.statistics import bootstrap_mean

if TYPE_CHECKING:
    from ggtune._core import Model

Values = NDArray[np.float64]

OWN_TEXT = Path(__file__).with_name("texts.txt")
OWN_QUESTIONS = Path(__file__).with_name("questions.jsonl")

_WINDOW = 256  # tokens
_MOST_WINDOWS = 200  # of a text of the user's own
_LEAST_WINDOWS = 8  # however long they take: of fewer there is hardly an interval


@dataclass(frozen=True)
class General:
    """What a model makes of the text, window by window, and of the questions."""

    text: str  # name of its file, "" for the built-in one
    losses: Values  # mean nats per token, shape (n_windows,)
    n_tokens: Values  # of each window
    questions: tuple[Scored, ...]
    seconds: float

    @property
    def loss(self) -> float:
        """Nats per token of the whole text."""
        return float(np.average(self.losses, weights=self.n_tokens))

    @property
    def perplexity(self) -> float:
        """Of the text."""
        return math.exp(min(self.loss, 700.0))

    @property
    def right(self) -> list[float]:
        """1 for each question whose right choice is the most probable one, else 0."""
        return [scored.score("acc") for scored in self.questions]

    def lines(self) -> list[str]:
        """Say it in two lines."""
        loss = bootstrap_mean(self.losses, self.n_tokens)
        right = bootstrap_mean(self.right, share=True)
        name = f"perplexity of {self.text}" if self.text else "general text perplexity"
        interval = f" [{math.exp(loss.low):.1f}, {math.exp(loss.high):.1f}]" if loss.has_interval else ""
        n = len(self.questions)
        of_questions = f" [{n * right.low:.0f}, {n * right.high:.0f}]" if right.has_interval else ""
        return [
            f"{name} {self.perplexity:.1f}{interval} ({int(self.n_tokens.sum())} tokens)",
            f"general questions {int(sum(self.right))}{of_questions} of {n} right",
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "text": self.text or "built in",
            "n_windows": len(self.losses),
            "n_tokens": int(self.n_tokens.sum()),
            "loss": self.loss,
            "perplexity": self.perplexity,
            "n_questions": len(self.questions),
            "n_right": int(sum(self.right)),
            "seconds": self.seconds,
        }


def measure_general(
    model: "Model | str | Path",
    adapters: Adapters = (),
    *,
    text: Path | None = None,
    threads: int = 0,
    seconds: float = math.inf,
    n_windows: int | None = None,
    done: Callable[[int, int], object] = lambda n, of: None,
) -> General:
    """Measure a model on the built-in text, or the one in the file ``text``, and on the built-in questions.

    After about ``seconds`` no further window is looked at; ``n_windows`` says how many instead, to look at the same
    ones with another model. ``done`` is told how many pieces of work are done, of how many.
    Raises :class:`GgtuneError` for a file that is no text, and for a model that can't decode.
    """
    started = time.monotonic()
    likelihood = Likelihood(model, adapters, threads=threads)
    windows = _windows(likelihood.model, _read(text or OWN_TEXT))
    if not windows:
        raise DataError(f"{text}: the text is shorter than two tokens.")
    form = read_choices(OWN_QUESTIONS)
    windows = windows[: n_windows or _MOST_WINDOWS]
    n_work = len(windows) + len(form.questions)
    losses: list[float] = []
    for found in likelihood.each(windows):
        losses.append(-float(found[0].mean(dtype=np.float64)))
        done(len(losses), n_work)
        if n_windows is None and len(losses) >= _LEAST_WINDOWS and time.monotonic() - started > seconds:
            break
    n_done = len(losses)
    scored = score_choices(likelihood, form.format, form.questions, done=lambda n: done(n_done + n, n_work))
    return General(
        text.name if text is not None else "",
        np.array(losses),
        np.array([len(ends[0]) for _, ends in windows[:n_done]], np.float64),
        scored.questions,
        time.monotonic() - started,
    )


def _read(path: Path) -> str:
    try:
        with open_text(path, encoding_of(path, [], "")) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text file.") from error


def _windows(model: "Model", text: str) -> list[Text]:
    """Cut paragraphs into windows of at most so many tokens; what is given is the BOS, or else the first token."""
    bos = [model.bos_token] if model.add_bos and model.bos_token >= 0 else []
    longest = min(_WINDOW, model.n_ctx_train - 1) if model.n_ctx_train else _WINDOW
    found: list[Text] = []
    for part in _joined(text.split("\n\n"), model, longest):
        tokens = part[len(bos) :] if part[: len(bos)] == bos else part
        for begin in range(0, len(tokens), longest):
            window = bos + tokens[begin : begin + longest]
            if len(window) > 1:
                found.append((window[:1], [window[1:]]))
    return found


def _joined(paragraphs: Sequence[str], model: "Model", longest: int) -> list[list[int]]:
    """Tokens of paragraphs; short ones, which say little by themselves, go together."""
    found: list[list[int]] = []
    for paragraph in paragraphs:
        if not paragraph.strip():
            continue
        tokens: list[int] = text_tokens(model, paragraph.strip() + "\n\n").tolist()
        if found and len(found[-1]) + len(tokens) <= longest // 2:
            found[-1] += tokens
        else:
            found.append(tokens)
    return found
