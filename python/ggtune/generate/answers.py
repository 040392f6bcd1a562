"""Answers to many prompts, side by side in one context."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.generate.slots import slots_for
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model

_LEAST_PREFIX = 4  # tokens: copying what is known of fewer is not worth it


@dataclass(frozen=True)
class Answer:
    """``tokens`` are without the end token; ``text`` ends before a stop text."""

    tokens: tuple[int, ...]
    text: str
    ended: bool  # by itself, not by the limit


@dataclass
class _UnderWay:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))


def answers(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    *,
    adapters: Sequence[tuple[str, float]] = (),
    adapter: "Adapter | None" = None,
    stops: Sequence[str] = (),
    max_tokens: int = 256,
    threads: int = 0,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> Iterator[tuple[int, Answer]]:
    """Give each prompt's answer with its index, in the order in which they end.

    ``adapters`` are files with their scales, ``adapter`` is one of this process. The likeliest token is taken each
    time; above ``temperature`` 0 it is drawn, with one of ``seeds`` for each prompt (its index where there is none).
    What all prompts start with is computed once. An answer ends at an end token, before a stop text, after
    ``max_tokens``, or where the model's context is full.

    Raises :class:`GgtuneError` for a prompt that is empty or fills the context, and for a model that can't be asked.
    """
    if not prompts:
        return
    longest = max(len(prompt) for prompt in prompts)
    context = longest + max_tokens
    if model.n_ctx_train:
        if longest >= model.n_ctx_train:
            raise GgtuneError(f"a question has {longest} tokens; the model's context is {model.n_ctx_train}")
        context = min(context, model.n_ctx_train)
    generator = core.BatchGenerator(
        model,
        list(adapters),
        adapter=adapter,
        prefix=_common_prefix(prompts),
        n_slots=slots_for(model, len(prompts), context),
        context=context,
        threads=resolved_threads(threads),
    )
    for i, prompt in enumerate(prompts):
        seed = seeds[i] if seeds else i
        generator.add(list(prompt), max_tokens=max_tokens, temperature=temperature, seed=seed)
    stops = [stop for stop in stops if stop]
    under_way: dict[int, _UnderWay] = {}
    while steps := generator.step():
        for i, token, at_end in steps:
            answer = under_way.setdefault(i, _UnderWay())
            if not at_end:
                answer.tokens.append(token)
            stopped = not at_end and stops and _has_stop(model, answer, token, stops)
            if stopped:
                generator.end(i)
            if at_end or stopped or len(answer.tokens) == min(max_tokens, context - len(prompts[i])):
                del under_way[i]
                yield i, _finished(model, answer.tokens, stops, ended=bool(at_end or stopped))


def _common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that all prompts start with, and have at least one more than; none that are not worth it."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    most = min(len(prompt) for prompt in prompts) - 1
    n = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:n] if len(prompts) > 1 and n >= _LEAST_PREFIX else []


def _has_stop(model: "Model", answer: _UnderWay, token: int, stops: Sequence[str]) -> bool:
    piece = answer.decoder.decode(model.detokenize(np.array([token], dtype=np.int32)))
    answer.text += piece
    new = len(piece) + max(map(len, stops))
    return any(stop in answer.text[-new:] for stop in stops)


def _finished(model: "Model", tokens: list[int], stops: Sequence[str], *, ended: bool) -> Answer:
    text = model.detokenize(np.array(tokens, dtype=np.int32)).decode("utf-8", "replace")
    at = min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)
    return Answer(tuple(tokens), text if at is None else text[:at], ended)
