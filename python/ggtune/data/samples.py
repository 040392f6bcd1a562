"""Token samples: the ids of one training text and a loss weight for each of them."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Cut a plain text into windows of ``context`` rows, each token a target.

    A window starts with a BOS where the tokenizer asks for one; special tokens in the text are parsed, and the end
    token stands behind the text, so that the model learns where one ends. Windows follow each other, or
    with ``overlapping`` start every half context. ``row`` is the number of the window, from 1.
    """
    tokens = tokenizer.tokenize(text, parse_special=True)
    if tokenizer.eos_token >= 0 and not (len(tokens) and tokenizer.is_end_token(int(tokens[-1]))):
        tokens = np.append(tokens, np.int32(tokenizer.eos_token))
    bos = tokenizer.bos_token
    with_bos = tokenizer.add_bos and bos >= 0
    if with_bos and len(tokens) and tokens[0] == bos:
        tokens = tokens[1:]
    stride = max(1, context // 2) if overlapping else context
    # without BOS the first token of a window is given, and is the last target of the window before
    length = context if with_bos else context + 1
    samples: list[Sample] = []
    for start in range(0, len(tokens), stride):
        window = tokens[start : start + length].tolist()
        if not with_bos and len(window) < 2:
            break
        samples.append(make_sample([bos] if with_bos else [], window, "all", len(samples) + 1))
        if start + length >= len(tokens):
            break
    return samples
