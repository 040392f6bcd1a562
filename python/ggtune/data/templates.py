"""Prompt templates: how a question, a system text and an answer become one text.

A rendered text is kept as segments: what the template wrote (special tokens in it are meant) and what the user wrote
(literal: never parsed for special tokens). The BOS stands apart, because whether a tokenizer, Ollama or the text itself
puts it there differs, and it must be there once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from ggtune.data.conversation import Conversation, exchange
from ggtune.data.segments import Rendered, RenderedConversation, Segment, joined
from ggtune.data.thinking import THINK, ThinkingTags, mark_thinking
from ggtune.errors import GgtuneError


class Template(Protocol):
    """What the pipeline needs of a template, a named one or the model's own."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def title(self) -> str:
        """What a reader is shown."""

    @property
    def bos(self) -> str:
        """BOS text that the template writes first; "" leaves the BOS to the tokenizer."""

    @property
    def after_question(self) -> str:
        """Text between the question and the answer's part: the answer's tag."""

    @property
    def answer_suffix(self) -> str:
        """Text between the answer and the end token."""

    @property
    def end(self) -> str:
        """End token text; "" stands for the model's own EOS."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings at which generation has to stop."""

    @property
    def thinking_tags(self) -> tuple[ThinkingTags, ...]:
        """What stands around an assistant's thoughts."""

    def render(self, system: str | None, question: str, answer: str) -> Rendered:
        """Render one turn. Raises :class:`GgtuneError` for a system text that the template has no place for."""

    def render_prompt(self, system: str | None, question: str) -> Rendered:
        """Render a turn that waits for its answer. Raises as :meth:`render`."""

    def render_conversation(self, conversation: Conversation) -> RenderedConversation:
        """Render turns up to the last assistant's. Raises :class:`GgtuneError` for turns that it has no place for."""


@dataclass(frozen=True)
class PromptTemplate:
    """A named template.

    The prompt is ``opening [before_system S after_system] before_question Q after_question``, the answer
    ``answer_prefix A answer_suffix end``. Without ``before_system`` it takes no system text. A further turn follows
    behind ``between_turns`` (and the BOS with ``bos_every_turn``), without system text.
    """

    name: str
    bos: str
    opening: str
    before_system: str | None
    after_system: str
    before_question: str
    after_question: str
    answer_prefix: str
    answer_suffix: str
    end: str
    stops: tuple[str, ...]
    default_system: str | None = None
    between_turns: str = ""
    bos_every_turn: bool = False

    @property
    def title(self) -> str:
        """What a reader is shown."""
        return self.name

    @property
    def thinking_tags(self) -> tuple[ThinkingTags, ...]:
        """What stands around an assistant's thoughts."""
        return (THINK,)

    @property
    def accepts_system(self) -> bool:
        """Whether there is a place for a system text."""
        return self.before_system is not None

    def render_prompt(self, system: str | None, question: str) -> Rendered:
        """Render a turn that waits for its answer. Raises as :meth:`render`."""
        prompt = [Segment(self.opening)]
        shown_system = system or self.default_system
        if shown_system is not None:
            if self.before_system is None:
                raise GgtuneError(
                    f"The template '{self.name}' has no place for a system text. "
                    "Leave the system text out, or choose a template that takes one: "
                    + ", ".join(t.name for t in TEMPLATES.values() if t.accepts_system)
                    + "."
                )
            prompt += [Segment(self.before_system), Segment(shown_system, literal=True), Segment(self.after_system)]
        prompt += [Segment(self.before_question), Segment(question, literal=True), Segment(self.after_question)]
        return Rendered(self.bos, joined(prompt), ())

    def render(self, system: str | None, question: str, answer: str) -> Rendered:
        """Render one turn. Raises :class:`GgtuneError` for a system text that the template has no place for."""
        return Rendered.of(self.render_conversation(exchange(question, answer, row=0, system=system)))

    def render_conversation(self, conversation: Conversation) -> RenderedConversation:
        """Render turns up to the last assistant's. Raises :class:`GgtuneError` for turns that it has no place for."""
        last = max((i for i, turn in enumerate(conversation.turns) if turn.role == "assistant"), default=-1)
        turns = conversation.turns[: last + 1]
        n_system = 1 if conversation.system is not None else 0
        segments: list[Segment] = []
        template = self
        for i in range(n_system, len(turns), 2):
            pair = turns[i : i + 2]
            if [turn.role for turn in pair] != ["user", "assistant"]:
                raise GgtuneError(
                    f"The template '{self.name}' renders questions and answers in turn: it has no place for "
                    f"{' and '.join(turn.role for turn in pair)} as turns {i + 1} and {i + 2}. Choose a template that "
                    "takes such turns (--template model, or a Jinja file)."
                )
            unknown = sorted({name for turn in pair for name in turn.fields if name != "name"})
            if unknown or conversation.tools:
                raise GgtuneError(
                    f"The template '{self.name}' has no place for {', '.join(unknown) or 'tools'}. Choose a template "
                    "that takes them (--template model, or a Jinja file)."
                )
            question, answer = pair
            if segments:
                segments.append(Segment(self.between_turns + (self.bos if self.bos_every_turn else "")))
            segments += template.render_prompt(
                conversation.system if i == n_system else None, question.text
            ).prompt_segments
            segments.append(Segment(self.answer_prefix, turn=i + 1))
            if answer.thinking:
                segments += [
                    Segment(f"{THINK.opening}\n", turn=i + 1),
                    Segment(answer.thinking, literal=True, turn=i + 1, thinking=True),
                    Segment(f"\n{THINK.closing}\n\n", turn=i + 1),
                ]
            segments += [
                Segment(answer.text, literal=True, turn=i + 1),
                Segment(self.answer_suffix, turn=i + 1),
                Segment(self.end, turn=i + 1, is_end=True),
            ]
            template = replace(self, default_system=None)  # it opens the conversation, not every turn
        return RenderedConversation(self.bos, joined(mark_thinking(joined(segments), self.thinking_tags)))

    def parse(self, text: str) -> tuple[str | None, str, str]:
        """Take a rendered text apart into ``(system, question, answer)``, each without surrounding white space.

        BOS and end token may be missing. Raises :class:`ValueError` where the text has not the template's form.
        """
        rest = _after(text.strip().removeprefix(self.bos).lstrip(), self.opening)
        system = None
        if self.before_question and rest.startswith(self.before_question):
            rest = rest.removeprefix(self.before_question)
        elif self.before_system is not None and rest.startswith(self.before_system):
            system, rest = _split(rest.removeprefix(self.before_system), self.after_system + self.before_question)
        else:
            rest = _after(rest, self.before_question)
        question, answer = _split(rest, self.after_question)
        if system == self.default_system:
            system = None
        return system, question.strip(), answer.rstrip().removesuffix(self.end).strip()


def _after(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise ValueError(f"expected {prefix!r}, found {text[:20]!r}")
    return text.removeprefix(prefix)


def _split(text: str, separator: str) -> tuple[str, str]:
    before, found, after = text.partition(separator)
    if not found:
        raise ValueError(f"{separator!r} is missing")
    return before, after


_ALL = (
    # github.com/tatsu-lab/stanford_alpaca: the preamble is part of the format that such models were trained on
    PromptTemplate(
        name="alpaca",
        bos="",
        opening="",
        before_system="",
        after_system="\n\n",
        before_question="### Instruction:\n",
        after_question="\n\n### Response:\n",
        answer_prefix="",
        answer_suffix="",
        end="",
        stops=("### Instruction:", "### Response"),
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
    ),
    # llama.com/docs, "Llama 2": a turn of a chat model
    PromptTemplate(
        name="llama2",
        bos="<s>",
        opening="[INST] ",
        before_system="<<SYS>>\n",
        after_system="\n<</SYS>>\n\n",
        before_question="",
        after_question=" [/INST]",
        answer_prefix=" ",
        answer_suffix=" ",
        end="</s>",
        stops=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
        bos_every_turn=True,
    ),
    # Mistral-7B-Instruct v0.1 and v0.2; the model card knows no system text
    PromptTemplate(
        name="mistral",
        bos="<s>",
        opening="[INST] ",
        before_system=None,
        after_system="",
        before_question="",
        after_question=" [/INST]",
        answer_prefix=" ",
        answer_suffix="",
        end="</s>",
        stops=("[INST]", "[/INST]"),
    ),
    # Qwen and many others; a BOS only where the tokenizer asks for one
    PromptTemplate(
        name="chatml",
        bos="",
        opening="",
        before_system="<|im_start|>system\n",
        after_system="<|im_end|>\n",
        before_question="<|im_start|>user\n",
        after_question="<|im_end|>\n<|im_start|>assistant\n",
        answer_prefix="",
        answer_suffix="",
        end="<|im_end|>",
        stops=("<|im_start|>", "<|im_end|>"),
        between_turns="\n",
    ),
    # llama.com/docs, "Llama 3"
    PromptTemplate(
        name="llama3",
        bos="<|begin_of_text|>",
        opening="",
        before_system="<|start_header_id|>system<|end_header_id|>\n\n",
        after_system="<|eot_id|>",
        before_question="<|start_header_id|>user<|end_header_id|>\n\n",
        after_question="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        answer_prefix="",
        answer_suffix="",
        end="<|eot_id|>",
        stops=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # ai.google.dev/gemma/docs: "formatting and system instructions"; there is no system role
    PromptTemplate(
        name="gemma",
        bos="<bos>",
        opening="",
        before_system=None,
        after_system="",
        before_question="<start_of_turn>user\n",
        after_question="<end_of_turn>\n<start_of_turn>model\n",
        answer_prefix="",
        answer_suffix="",
        end="<end_of_turn>",
        stops=("<start_of_turn>", "<end_of_turn>"),
        between_turns="\n",
    ),
    # model card of Phi-3-mini-instruct
    PromptTemplate(
        name="phi3",
        bos="",
        opening="",
        before_system="<|system|>\n",
        after_system="<|end|>\n",
        before_question="<|user|>\n",
        after_question="<|end|>\n<|assistant|>\n",
        answer_prefix="",
        answer_suffix="",
        end="<|end|>",
        stops=("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
        between_turns="\n",
    ),
    # the question, a line feed, the answer: for base models and completion
    PromptTemplate(
        name="plain",
        bos="",
        opening="",
        before_system=None,
        after_system="",
        before_question="",
        after_question="\n",
        answer_prefix="",
        answer_suffix="",
        end="",
        stops=(),
    ),
)

TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in _ALL}
"""Named templates. ``model``, the GGUF's own, is :class:`ggtune.data.chat_template.ChatTemplate`."""
