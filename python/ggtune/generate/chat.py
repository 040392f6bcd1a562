"""A conversation with a model: each answer is given with all that was said before."""

from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ggtune._native import core
from ggtune.data.conversation import Conversation, Turn
from ggtune.data.templates import Template
from ggtune.data.tokenization import IntArray, TurnEncoder, encode_prompt
from ggtune.errors import GgtuneError
from ggtune.generate.pieces import text_pieces
from ggtune.system import resolved_threads

if TYPE_CHECKING:
    from ggtune import _core
    from ggtune._core import Adapter, Model

_MOST_CONTEXT = 4096  # tokens


class Chat:
    """Keeps what was said; what of it the model has read already is not computed again.

    Where the context is too small for all of it, the first questions are forgotten with their answers: ``n_forgotten``
    counts them. ``n_kept`` tokens of the last prompt were there from before.
    """

    def __init__(
        self,
        model: "Model",
        template: Template,
        *,
        adapter: "Adapter | None" = None,
        system: str | None = None,
        threads: int = 0,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        context: int = _MOST_CONTEXT,
    ) -> None:
        """``context`` is the most tokens of the whole conversation; the model's own, where that is less."""
        self._model, self._template, self._adapter, self._system = model, template, adapter, system
        self._threads, self._temperature, self._seed = resolved_threads(threads), temperature, seed
        self._max_tokens = max_tokens
        self._context = min(context, model.n_ctx_train or context)
        self._exchanges: list[tuple[str, str]] = []
        self._generator: _core.Generator | None = None
        self.n_forgotten = 0
        self.n_kept = 0

    def pieces(self, question: str) -> Generator[str, None, None]:
        """Yield the answer as it comes, without white space in front. One that is cut off is kept as far as it came.

        Raises :class:`GgtuneError` for a question that fills the context alone, or that the template has no place for;
        it is not kept then.
        """
        prompt = self._fitting_prompt(question)
        if self._generator is None:
            self._generator = core.Generator(
                self._model,
                prompt,
                adapter=self._adapter,
                context=self._context,
                threads=self._threads,
                temperature=self._temperature,
                seed=self._seed,
            )
        else:
            self.n_kept = self._generator.restart(prompt)
        said = ""
        try:
            tokens = islice(self._generator, self._max_tokens)
            for piece in text_pieces(self._model, tokens, self._template.stops, self._max_tokens):
                shown = piece if said else piece.lstrip()
                said += shown
                if shown:
                    yield shown
        finally:
            if said.strip():
                self._exchanges.append((question, said.strip()))

    def forget(self) -> None:
        """Begin anew."""
        self._exchanges.clear()
        self.n_forgotten = 0

    def _fitting_prompt(self, question: str) -> IntArray:
        room = min(self._max_tokens, self._context // 4)
        while len(prompt := self._prompt(question)) + room > self._context and self._exchanges:
            del self._exchanges[0]
            self.n_forgotten += 1
        if len(prompt) >= self._context:
            raise GgtuneError(f"the question has {len(prompt)} tokens; the conversation's context is {self._context}")
        return prompt

    def _prompt(self, question: str) -> IntArray:
        """Token ids of all that was said and the question, as training puts them before an answer."""
        if not self._exchanges:
            return encode_prompt(self._model, self._template, question, self._system)
        turns = [Turn("system", self._system)] if self._system else []
        for asked, answered in self._exchanges:
            turns += [Turn("user", asked), Turn("assistant", answered)]
        turns += [Turn("user", question), Turn("assistant", "-")]  # the last one only marks where its words would be
        rendered = self._template.render_conversation(Conversation(tuple(turns), row=0))
        encoder = TurnEncoder(self._model, self._template)
        tokens, _, n_prompt = encoder.encode_conversation(rendered, lambda segment: 0.0)
        return np.array(tokens[:n_prompt], dtype=np.int32)
