"""Answers of a subject to many prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune.generate import answers
from ggtune.train.questions import without_thought

if TYPE_CHECKING:
    from ggtune._core import Model


@dataclass(frozen=True)
class GivenAnswer:
    """An answer as it is scored: without a thought in front of it, and without white space around it."""

    text: str
    ended: bool  # by itself, not by the limit
    n_tokens: int


def given_answers(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    *,
    adapters: Sequence[tuple[str, float]] = (),
    stops: Sequence[str] = (),
    max_tokens: int = 256,
    threads: int = 0,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> Iterator[tuple[int, GivenAnswer]]:
    """As :func:`ggtune.generate.answers`, with the answers as they are scored."""
    found = answers(
        model,
        prompts,
        adapters=adapters,
        stops=stops,
        max_tokens=max_tokens,
        threads=threads,
        temperature=temperature,
        seeds=seeds,
    )
    for index, answer in found:
        yield index, GivenAnswer(without_thought(answer.text), answer.ended, len(answer.tokens))
