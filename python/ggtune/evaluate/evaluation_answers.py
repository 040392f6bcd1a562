"""Answers of a subject to many prompts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune._native import core
from ggtune.errors import GgtuneError
from ggtune.system import resolved_threads
from ggtune.train.questions import without_thought

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model

_SIDE_BY_SIDE = 8


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
    adapter: "Adapter | None" = None,
    stops: Sequence[str] = (),
    max_tokens: int = 256,
    threads: int = 0,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> Iterator[tuple[int, GivenAnswer]]:
    """Give each prompt's answer with its index, in the order in which they end.

    ``adapters`` are files with their scales, ``adapter`` is the same as one live adapter; ``seeds`` has one for each
    prompt, for answers that are drawn. Raises :class:`GgtuneError`
    for a prompt that fills the model's context.
    """
    longest = max((len(prompt) for prompt in prompts), default=0)
    if model.n_ctx_train and longest >= model.n_ctx_train:
        raise GgtuneError(f"a question has {longest} tokens; the model's context is {model.n_ctx_train}")
    if temperature > 0:
        found = _drawn(model, prompts, adapter, max_tokens, threads, temperature, seeds)
    else:
        found = _greedy(model, prompts, adapters, max_tokens, threads)
    for index, tokens, ended in found:
        text = model.detokenize(tokens).decode("utf-8", "replace")
        at = min((text.index(stop) for stop in stops if stop and stop in text), default=None)
        shown = text if at is None else text[:at]
        yield index, GivenAnswer(without_thought(shown), ended or at is not None, len(tokens))


def _greedy(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    adapters: Sequence[tuple[str, float]],
    max_tokens: int,
    threads: int,
) -> Iterator[tuple[int, list[int], bool]]:
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max((len(prompt) for prompt in prompts), default=1)
    scorer = core.Scorer(
        model,
        list(adapters),
        n_tokens=_SIDE_BY_SIDE * (longest + max_tokens),
        n_sequences=_SIDE_BY_SIDE,
        threads=resolved_threads(threads),
    )
    for begin in range(0, len(order), _SIDE_BY_SIDE):
        chosen = order[begin : begin + _SIDE_BY_SIDE]
        most = max_tokens
        if model.n_ctx_train:
            most = min(most, model.n_ctx_train - len(prompts[chosen[-1]]))
        answers = scorer.greedy([list(prompts[i]) for i in chosen], max_tokens=most)
        for i, tokens in zip(chosen, answers, strict=True):
            ended = bool(tokens) and model.is_end_token(tokens[-1])
            yield i, tokens[:-1] if ended else tokens, ended


def _drawn(
    model: "Model",
    prompts: Sequence[Sequence[int]],
    adapter: "Adapter | None",
    max_tokens: int,
    threads: int,
    temperature: float,
    seeds: Sequence[int],
) -> Iterator[tuple[int, list[int], bool]]:
    for i, prompt in enumerate(prompts):
        context = len(prompt) + max_tokens
        if model.n_ctx_train:
            context = min(context, model.n_ctx_train)
        tokens = list(
            core.Generator(
                model,
                list(prompt),
                adapter=adapter,
                context=context,
                threads=resolved_threads(threads),
                temperature=temperature,
                seed=seeds[i] if seeds else i,
            )
        )
        yield i, tokens[:max_tokens], len(tokens) < min(max_tokens, context - len(prompt))
