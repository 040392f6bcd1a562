"""Go text/template for Ollama, made from the template of a training so that both give the same text.

What the training's template writes around the texts of a conversation is found by rendering it
(:mod:`ggtune.ollama.chat_format`), written as Go (:mod:`ggtune.ollama.template_writer`), and what was written is run
(:mod:`ggtune.ollama.go_template`) and compared with the training's text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggtune.data.chat_template import ChatTemplate, jinja_source
from ggtune.data.templates import TEMPLATES, PromptTemplate
from ggtune.errors import GgtuneError
from ggtune.gguf.vocabulary import SpecialTokens
from ggtune.ollama.chat_format import ChatFormat, Render, Turn, Where, learn_format
from ggtune.ollama.go_template import GoTemplate, Message, render_for_ollama
from ggtune.ollama.template_writer import write_template

# how a turn's tag looks where it isn't the whole line
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
# what no answer has by chance
_SPECIAL = re.compile(r"[<>\[\]{}|#~]|^\w+:$")

_SELF_TEST_SYSTEM = 'You teach "chemistry".\nBe short: {{ "one" }} line.'
_SELF_TEST_TURNS = (
    ("What is rust?\nOne line, please.", "Rust is \u201ehydrated\u201c iron(III) oxide."),
    ("Is 2 < 3 & 4 > 1?", "Yes:\n\n- 2 < 3\n- 4 > 1"),
    ("{% if %} {{ What }} is $last?", "No.\nA template's <tag> is text here \u2014 \u00e9\u6c34."),
)
_SELF_TEST_LENGTHS = (1, 2, 3)


@dataclass(frozen=True)
class Difference:
    """A chat for which Ollama would ask otherwise than the training's template."""

    n_turns: int
    system: bool
    expected: str
    found: str

    def __str__(self) -> str:
        """Which chat, and where the two texts part."""
        place = next((i for i, (a, b) in enumerate(zip(self.expected, self.found, strict=False)) if a != b), None)
        place = min(len(self.expected), len(self.found)) if place is None else place
        start = max(0, place - 10)
        expected, found = self.expected[start : place + 30], self.found[start : place + 30]
        return f"{_chat_name(self.n_turns, self.system)}: {expected!r} was trained, TEMPLATE gives {found!r}"


@dataclass(frozen=True)
class OllamaTemplate:
    """What makes Ollama ask as the training did."""

    source: PromptTemplate | ChatTemplate
    text: str  # Go text/template
    stops: tuple[str, ...]  # texts that end an answer
    limits: tuple[str, ...]  # what the training's template does and this one can't
    chat: ChatFormat
    render: Render  # the training's text, without a BOS that Ollama adds

    @property
    def name(self) -> str:
        """The training template's name, as a reader is shown it."""
        return self.source.title

    def check_system(self, system: str | None) -> None:
        """Raise :class:`GgtuneError` where the training's template has no place for a system text."""
        if system:
            self.render(system, (), _SELF_TEST_TURNS[0][0])
        if system and not self.chat.accepts_system:
            raise GgtuneError(f"The template '{self.name}' leaves the system text out. Leave it out, too.")

    def self_test(self) -> tuple[Difference, ...]:
        """Compare the rendered TEMPLATE with the training's text, for chats of one to three turns.

        With and without system text; earlier answers come once as they are in the data, and once as the model writes
        them. Chats that the training's template refuses are left out. Nothing is returned where all agree.
        """
        parsed = GoTemplate(self.text)
        written = [
            (question, self.chat.answer_prefix + answer + self.chat.answer_suffix)
            for question, answer in _SELF_TEST_TURNS
        ]
        differences = []
        for system in (None, _SELF_TEST_SYSTEM) if self.chat.accepts_system else (None,):
            for n_turns in _SELF_TEST_LENGTHS:
                earlier, question = _SELF_TEST_TURNS[: n_turns - 1], _SELF_TEST_TURNS[n_turns - 1][0]
                try:
                    expected = self.render(system, earlier, question)
                except GgtuneError:
                    continue
                for turns in (earlier, written[: n_turns - 1]):
                    found = render_for_ollama(parsed, _messages(system, turns, question))
                    if found != expected:
                        differences.append(Difference(n_turns, system is not None, expected, found))
                        break
        return tuple(differences)


def ollama_template(source: PromptTemplate | ChatTemplate, tokens: SpecialTokens) -> OllamaTemplate:
    """Make TEMPLATE and stops of a training's template for a model with these special tokens.

    Raises :class:`GgtuneError` for a template that can't render a question, and its
    :class:`~ggtune.ollama.chat_format.NotExpressibleError` (with the reason) for one that Go's can't express.
    """
    if isinstance(source, PromptTemplate):
        end = source.end if source.end and source.end in tokens.ends else tokens.eos
        render = _named_render(source, tokens, end)
        tail = end + source.between_turns
        chat = learn_format(
            render,
            answer_prefix=source.answer_prefix,
            answer_suffix=source.answer_suffix,
            end=end,
            question_end=tail if source.after_question.startswith(tail) else "",
        )
        stops = (*source.stops, end)
        limits: tuple[str, ...] = ()
    else:
        render = _model_render(source, tokens)
        prefix, suffix = _around_answer(source)
        chat = learn_format(
            render,
            answer_prefix=prefix,
            answer_suffix=suffix,
            end=source.end,
            question_end=_question_end(source),
        )
        stops = (source.end or tokens.eos, *_turn_tags(chat, tokens.bos))
        limits = _limits(source, chat, tokens)
    return OllamaTemplate(
        source=source,
        text=write_template(chat),
        stops=tuple(dict.fromkeys(stop for stop in stops if stop)),
        limits=limits,
        chat=chat,
        render=render,
    )


def model_template(jinja_text: str, tokens: SpecialTokens, title: str = "") -> ChatTemplate:
    """Make the template ``model`` of a GGUF from its metadata alone, or of a Jinja file with that ``title``.

    Raises :class:`GgtuneError` for a broken one.
    """

    def end_of(text: str) -> str:
        found = [text[: text.index(end) + len(end)] for end in tokens.ends if end in text]
        return min(found, key=len, default="")

    return ChatTemplate(jinja_text, bos=tokens.bos, eos=tokens.eos, end_of=end_of, title=title)


def choose_ollama_template(
    name: str | None, jinja_text: str | None, tokens: SpecialTokens
) -> tuple[OllamaTemplate | None, list[str]]:
    """Make the TEMPLATE of the template with that name, and say what the user should know about it.

    None is ``model`` where the GGUF has a chat template, else ``plain``. There is no TEMPLATE where the model's own
    can't be expressed. Raises :class:`GgtuneError` for an unknown name, and for ``model`` without a chat template.
    """
    if name is None and jinja_text is None:
        template, messages = _checked(ollama_template(TEMPLATES["plain"], tokens))
        note = (
            "The model file has no chat template: the bare question is sent (template plain). "
            "Name the template that it was trained with by --template."
        )
        return template, [note, *messages]
    if name in TEMPLATES:
        return _checked(ollama_template(TEMPLATES[name], tokens))
    title = ""
    if name is not None and (found := jinja_source(name)):
        (jinja_text, title), name = found, "model"
    if name not in (None, "model"):
        raise GgtuneError(f'There is no template "{name}"; there are: {", ".join([*TEMPLATES, "model"])}.')
    if jinja_text is None:
        raise GgtuneError(f"The model file has no chat template of its own; choose one: {', '.join(TEMPLATES)}.")
    try:
        return _checked(ollama_template(model_template(jinja_text, tokens, title), tokens))
    except GgtuneError as error:
        return None, [_none_written(str(error))]


def _checked(template: OllamaTemplate) -> tuple[OllamaTemplate | None, list[str]]:
    differences = template.self_test()
    if any(difference.n_turns == 1 for difference in differences):
        return None, [_none_written("; ".join(map(str, differences)))]
    messages = [f"TEMPLATE: {limit}" for limit in template.limits]
    if differences:
        return template, [*messages, *(f"TEMPLATE differs in a chat of {difference}." for difference in differences)]
    return template, [*messages, "TEMPLATE was run and gives the training's text, in chats of one to three turns."]


def _none_written(reason: str) -> str:
    return (
        "No TEMPLATE was written: the model file's own chat template can't be expressed as a Go template. "
        f"{reason.removesuffix('.')}. Ollama looks for one that resembles it, and sends the bare question where it "
        "finds none. If the answers are off, train and package with a named template."
    )


def _messages(system: str | None, turns: Sequence[Turn], question: str) -> list[Message]:
    messages = [Message("system", system)] if system else []
    for asked, answered in turns:
        messages += [Message("user", asked), Message("assistant", answered)]
    return [*messages, Message("user", question)]


def _chat_name(n_turns: int, system: bool) -> str:
    turns = "one turn" if n_turns == 1 else f"{n_turns} turns"
    return f"{turns} {'with' if system else 'without'} a system text"


def _trained_bos(source: PromptTemplate | ChatTemplate, tokens: SpecialTokens) -> str:
    """Text of the BOS that training puts first, as :class:`ggtune.data.tokenization.TurnEncoder` decides it."""
    return tokens.bos if tokens.add_bos or source.bos == tokens.bos else ""


def _without_added_bos(text: str, bos: str, tokens: SpecialTokens) -> str:
    """``text`` with the BOS of the training, once, unless Ollama adds it."""
    if not bos:
        return text
    while text.startswith(bos):
        text = text.removeprefix(bos)
    return text if tokens.add_bos else bos + text


def _named_render(source: PromptTemplate, tokens: SpecialTokens, end: str) -> Render:
    bos = _trained_bos(source, tokens)
    between = bos if source.bos_every_turn else source.between_turns
    later = replace(source, default_system=None)  # it opens the chat, not every turn

    def render(system: str | None, turns: Sequence[Turn], question: str) -> str:
        text = ""
        template = source
        for asked, answer in turns:
            turn = template.render(system, asked, answer)
            text += turn.prompt + turn.answer.removesuffix(source.end) + end + between
            template, system = later, None
        return _without_added_bos(text + template.render_prompt(system, question).prompt, bos, tokens)

    return render


def _model_render(source: ChatTemplate, tokens: SpecialTokens) -> Render:
    bos = _trained_bos(source, tokens)

    def render(system: str | None, turns: Sequence[Turn], question: str) -> str:
        messages = [
            {"role": message.role, "content": message.content} for message in _messages(system, turns, question)
        ]
        return _without_added_bos(source.render_messages(messages, add_generation_prompt=True), bos, tokens)

    return render


def _around_answer(source: ChatTemplate) -> tuple[str, str]:
    """Find what the model learns to write before and behind its answer."""
    answer = "9An9Kv"
    try:
        written = source.render(None, "8Qu9Xw", answer).answer
    except GgtuneError:  # no training can have used it
        return "", ""
    prefix, _, _ = written.partition(answer)
    return prefix, source.answer_suffix


def _question_end(source: ChatTemplate) -> str:
    """Find what closes a question, where the template can show one without asking for an answer."""
    question = "8Qu9Xw"
    try:
        text = source.render_messages([{"role": "user", "content": question}], add_generation_prompt=False)
    except GgtuneError:
        return ""
    return text.partition(question)[2]


def _turn_tags(chat: ChatFormat, bos: str) -> list[str]:
    """Find the tags behind an answer: a model that writes one has ended it, whether it wrote its end token or not."""
    opened = chat.after_answer[Where(system=False, first=True, last=True)].removeprefix(chat.answer_suffix + chat.end)
    tags = [chat.question_start or opened]
    if not chat.end:  # the training put the model's EOS where the chat template has a text of its own
        tags += [text.removesuffix(chat.question_start) for text in chat.after_answer.values()]
    found = []
    for text in tags:
        line = text.strip().partition("\n")[0].strip()
        if _SPECIAL.search(line.removeprefix(bos)):
            line = line.removeprefix(bos)
        # an answer with tags of its own may have the first of these in it, but not all of the line
        match = None if _TAG.search(chat.answer_prefix) else _TAG.match(line)
        tag = match[0] if match else line
        if _SPECIAL.search(tag) and tag not in chat.answer_prefix + chat.answer_suffix:
            found.append(tag)
    return found


def _limits(source: ChatTemplate, chat: ChatFormat, tokens: SpecialTokens) -> tuple[str, ...]:
    """Say what a chat template does that a Go template can't."""
    limits = [f"the chat template refuses {refusal}" for refusal in chat.refusals]
    render = _model_render(source, tokens)
    dates = source.dates_in(render(None, (), "8Qu9Xw"))
    if dates:
        limits.append(f"it holds the date of today ({', '.join(dates)}); the chat template writes that of the moment.")
    try:
        trimmed = render(None, [("8Qu1Xw", "<think>7Th9Zq</think>9An1Kv"), (" 8Qu2Xw \n", " 9An2Kv \n")], "8Qu3Xw")
    except GgtuneError:
        return tuple(limits)
    if " 8Qu2Xw \n" not in trimmed or " 9An2Kv \n" not in trimmed:
        limits.append("the chat template strips white space around texts; Go's templates can't.")
    if "7Th9Zq" not in trimmed:
        limits.append(
            "the chat template leaves <think>...</think> out of earlier answers; Go's templates can't "
            "(Ollama does so itself for the architecture qwen3)."
        )
    return tuple(limits)
