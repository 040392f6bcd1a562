"""Answers of the model with its adapter as it stands, in the middle of a training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune.generate import answers

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model


@dataclass(frozen=True)
class Answer:
    """What was generated."""

    text: str
    ended: bool  # by itself
    n_tokens: int


def greedy_answers(
    model: "Model",
    adapter: "Adapter",
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[str],
    max_tokens: int,
    threads: int,
) -> list[Answer]:
    """The likeliest token each time, up to an end token, a stop text or ``max_tokens``."""
    found = dict(answers(model, prompts, adapter=adapter, stops=stops, max_tokens=max_tokens, threads=threads))
    return [Answer(found[i].text.strip(), found[i].ended, len(found[i].tokens)) for i in range(len(prompts))]
