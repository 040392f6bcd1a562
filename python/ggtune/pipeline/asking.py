"""A model that answers questions as its training asked them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggtune.data.chat_template import choose_template
from ggtune.data.templates import Template
from ggtune.data.tokenization import encode_prompt
from ggtune.errors import GgtuneError
from ggtune.generate import Answer, Chat, answer_pieces, answers
from ggtune.gguf.adapter_file import load_adapter, read_adapter
from ggtune.gguf.asked_with import AskedWith
from ggtune.gguf.base import check_base
from ggtune.gguf.io import gguf_structure
from ggtune.train.opened import opened_model

if TYPE_CHECKING:
    from ggtune._core import Adapter, Model


@dataclass(frozen=True)
class AskOptions:
    """How a model is asked."""

    adapter: str | Path | None = None
    template: str | None = None  # None: the training's, else the model's own, else plain
    system: str | None = None  # None: the training's; "": none
    temperature: float = 0.0  # 0: the likeliest answer
    max_tokens: int = 256
    seed: int = 0  # of the choice where the temperature is above 0
    threads: int = 0
    devices: Mapping[str, Any] = field(default_factory=dict)  # settings of them, by their names in TrainConfig
    force: bool = False  # take an adapter that was trained on another base


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be asked several questions; they know nothing of each other."""

    model: "Model"
    adapter: "Adapter | None"
    template: Template
    system: str | None
    options: AskOptions
    warnings: tuple[str, ...]  # for the user

    def pieces(self, question: str) -> Iterator[str]:
        """Yield the answer as it comes, without white space in front. Raises :class:`GgtuneError`."""
        started = False
        for piece in answer_pieces(
            self.model,
            self.template,
            question,
            adapter=self.adapter,
            system=self.system,
            threads=self.options.threads,
            temperature=self.options.temperature,
            max_tokens=self.options.max_tokens,
            seed=self.options.seed,
        ):
            shown = piece if started else piece.lstrip()
            if shown:
                started = True
                yield shown

    def answer(self, question: str) -> str:
        """Return the answer without white space around it."""
        return "".join(self.pieces(question)).rstrip()

    def answers(self, questions: Sequence[str]) -> Iterator["Answer | GgtuneError"]:
        """Yield the answers to many questions in their order; they are computed side by side.

        Each is the answer that its question gets alone, but for the last digits of its arithmetic. A question that
        can't be asked has an error in its place. Raises :class:`GgtuneError` for a model that can't be asked.
        """
        found: dict[int, Answer | GgtuneError] = {}
        prompts: dict[int, list[int]] = {}
        for i, question in enumerate(questions):
            try:
                prompts[i] = self._prompt(question)
            except GgtuneError as error:
                found[i] = error
        numbers = list(prompts)
        coming = answers(
            self.model,
            list(prompts.values()),
            adapter=self.adapter,
            stops=self.template.stops,
            max_tokens=self.options.max_tokens,
            threads=self.options.threads,
            temperature=self.options.temperature,
            seeds=[self.options.seed] * len(prompts),
        )
        for i in range(len(questions)):
            while i not in found:
                number, answer = next(coming)
                found[numbers[number]] = answer
            yield found.pop(i)

    def chat(self) -> Chat:
        """Begin a conversation."""
        return Chat(
            self.model,
            self.template,
            adapter=self.adapter,
            system=self.system,
            threads=self.options.threads,
            temperature=self.options.temperature,
            max_tokens=self.options.max_tokens,
            seed=self.options.seed,
        )

    def _prompt(self, question: str) -> list[int]:
        prompt: list[int] = encode_prompt(self.model, self.template, question, self.system).tolist()
        if self.model.n_ctx_train and len(prompt) >= self.model.n_ctx_train:
            raise GgtuneError(f"the question has {len(prompt)} tokens; the model's context is {self.model.n_ctx_train}")
        return prompt


def load(model: str | Path, options: AskOptions | None = None) -> LoadedModel:
    """Load a model, and an adapter beside it, with the template and system text to ask them with.

    What ``options`` say goes first, then what the adapter says of its training, then what the model does.
    Raises :class:`GgtuneError` for files that can't be used or don't fit each other.
    """
    options = options or AskOptions()
    structure = gguf_structure(model)
    loaded = opened_model(model, options.devices)
    notes, warnings, adapter = {}, [], None
    if options.adapter is not None:
        adapter = load_adapter(options.adapter, loaded)
        content = read_adapter(options.adapter)
        notes = dict(content.notes)
        warnings = check_base(options.adapter, model, force=options.force, content=content)
    trained = AskedWith.of(notes, structure.ggtune_texts)
    template = choose_template(trained.template_or(options.template), loaded)
    return LoadedModel(loaded, adapter, template, trained.system_or(options.system), options, tuple(warnings))


def ask(model: str | Path, question: str, options: AskOptions | None = None) -> str:
    """Return the answer to one question, without white space around it. Raises as :func:`load`."""
    return load(model, options).answer(question)
