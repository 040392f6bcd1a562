"""One answer as it comes: a question through its template, tokens, and text piece by piece."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ggtune._native import core
from ggtune.data.templates import Template
from ggtune.data.tokenization import encode_prompt
from ggtune.errors import GgtuneError
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model


def answer_pieces(
    model: "Model",
    template: Template,
    question: str,
    *,
    adapter: "Adapter | None" = None,
    system: str | None = None,
    threads: int = 0,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> Iterator[str]:
    """Yield the answer's text piece by piece; ``temperature`` 0 takes the likeliest token each time.

    It ends at an end token, before a stop text of the template, after ``max_tokens`` or at the full context.
    Raises :class:`GgtuneError` for a question that fills the context.
    """
    prompt = encode_prompt(model, template, question, system)
    if model.n_ctx_train and len(prompt) >= model.n_ctx_train:
        raise GgtuneError(f"the question has {len(prompt)} tokens; the model's context is {model.n_ctx_train}")
    context = len(prompt) + max_tokens
    if model.n_ctx_train:
        context = min(context, model.n_ctx_train)
    tokens = core.Generator(
        model,
        prompt,
        adapter=adapter,
        context=context,
        threads=resolved_threads(threads),
        temperature=temperature,
        seed=seed,
    )
    yield from text_pieces(model, tokens, template.stops, max_tokens)


def text_pieces(model: "Model", tokens: Iterable[int], stops: Sequence[str], max_tokens: int) -> Iterator[str]:
    """Yield the text of ``tokens``, at most so many, before the first stop text; they are taken as they are needed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    stops = [stop for stop in stops if stop]
    held = ""  # may become a stop text
    for n, token in enumerate(tokens):
        if n >= max_tokens:
            break
        # an array: a signal that comes while a list is converted would be lost in a TypeError
        held += decoder.decode(model.detokenize(np.array([token], dtype=np.int32)))
        ended = min((at for stop in stops if (at := held.find(stop)) >= 0), default=None)
        if ended is not None:
            yield held[:ended]
            return
        n_kept = _longest_stop_start(held, stops)
        if ready := held[: len(held) - n_kept]:
            yield ready
        held = held[len(held) - n_kept :]
    if rest := held + decoder.decode(b"", final=True):
        yield rest


def _longest_stop_start(text: str, stops: list[str]) -> int:
    """Count the characters at the end of ``text`` that some stop text starts with."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
