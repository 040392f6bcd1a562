"""Token samples: the ids of one training text and a loss weight for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggtune.data.tokenization import IntArray, Tokenizer

FloatArray = NDArray[np.float32]
LossOn = Literal["answer", "all"]
TooLong = Literal["cut", "skip"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One training text. The model sees ``tokens[:-1]``, so n tokens make n - 1 rows of a micro-batch.

    ``weights[i]`` is the weight of ``tokens[i]`` as a target: 0 for what is given, and always 0 for ``tokens[0]``.
    The first ``n_prompt`` tokens are the prompt with its BOS. ``row`` is the row of the file, or the line for text.
    """

    tokens: IntArray  # (n,)
    weights: FloatArray  # (n,)
    n_prompt: int
    row: int

    @property
    def n_rows(self) -> int:
        """Rows in a micro-batch."""
        return len(self.tokens) - 1


def make_sample(prompt: Sequence[int], answer: Sequence[int], loss_on: LossOn, row: int) -> Sample:
    """Join the tokens of prompt and answer; the loss is on the answer, or on every token."""
    weights = np.ones(len(prompt) + len(answer), dtype=np.float32)
    weights[: len(prompt) if loss_on == "answer" else 1] = 0
    weights[:1] = 0
    return Sample(np.array([*prompt, *answer], dtype=np.int32), weights, len(prompt), row)


def text_windows(tokenizer: Tokenizer, text: str, context: int, *, overlapping: bool = False) -> list[Sample]:
    """Cut a plain text into windows (:class:`WindowCutter`)."""
    cutter = WindowCutter(tokenizer, context, overlapping=overlapping)
    return list(cutter.add(text_tokens(tokenizer, text), last=True))


def text_tokens(tokenizer: Tokenizer, text: str, before: str = "") -> IntArray:
    """Token ids of a text, special tokens in it parsed, as they are behind the character ``before``. Shape ``(n,)``."""
    if before:
        head = tokenizer.tokenize(before, parse_special=True)
        whole = tokenizer.tokenize(before + text, parse_special=True)
        if np.array_equal(whole[: len(head)], head):
            return whole[len(head) :]
    return tokenizer.tokenize(text, parse_special=True)


class WindowCutter:
    """Cuts the tokens of a plain text, which may come in pieces, into windows of ``context`` rows.

    Each token is a target. A window starts with a BOS where the tokenizer asks for one, and the end token stands behind
    the text, so that the model learns where one ends. Windows follow each other, or with ``overlapping`` start every
    half context. ``row`` is the number of the window, from 1.
    """

    def __init__(self, tokenizer: Tokenizer, context: int, *, overlapping: bool = False) -> None:
        self._tokenizer = tokenizer
        self._bos = [tokenizer.bos_token] if tokenizer.add_bos and tokenizer.bos_token >= 0 else []
        self._stride = max(1, context // 2) if overlapping else context
        # without BOS the first token of a window is given, and is the last target of the window before
        self._length = context if self._bos else context + 1
        self._left: IntArray = np.zeros(0, np.int32)
        self._begun = False
        self.n_windows = 0

    def add(self, tokens: IntArray, *, last: bool) -> Iterator[Sample]:
        """Give the windows that are full with these tokens, and with the ``last`` ones the rest."""
        if not self._begun and self._bos and len(tokens) and tokens[0] == self._bos[0]:
            tokens = tokens[1:]
        self._begun = True
        left = np.concatenate([self._left, tokens])
        eos = self._tokenizer.eos_token
        if last and eos >= 0 and not (len(left) and self._tokenizer.is_end_token(int(left[-1]))):
            left = np.append(left, np.int32(eos))
        start = 0
        while start < len(left) and (last or start + self._length < len(left)):
            window = left[start : start + self._length].tolist()
            if not self._bos and len(window) < 2:
                break
            self.n_windows += 1
            yield make_sample(self._bos, window, "all", self.n_windows)
            if start + self._length >= len(left):
                break
            start += self._stride
        self._left = left[start:]
