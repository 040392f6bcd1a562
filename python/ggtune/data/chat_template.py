"""The template ``model``: a GGUF's own chat template (``tokenizer.chat_template``, Jinja2) in a sandbox.

The environment is the one that chat templates are written for (huggingface.co/docs/transformers, "Writing a chat
template"): ``trim_blocks``, ``lstrip_blocks``, loop controls, ``raise_exception``, ``strftime_now``, ``tojson``, and
the ``generation`` tag.
"""

from __future__ import annotations

import datetime
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ggtune.data.chat_render import ConversationRenderer
from ggtune.data.conversation import Conversation, Turn, exchange
from ggtune.data.segments import Rendered, RenderedConversation
from ggtune.data.templates import TEMPLATES, Template
from ggtune.data.thinking import ThinkingTags
from ggtune.data.tokenization import Tokenizer, special_texts, token_text
from ggtune.errors import GgtuneError

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser

JINJA = "jinja:"  # in front of a template's source, where its name is asked for
_JINJA_SUFFIXES = (".jinja", ".jinja2", ".j2")
_MAX_TEXT = 1 << 20  # characters that a template may write beyond what it was given
_MAX_SECONDS = 5.0  # for one turn
_PROBE_QUESTION = "Which probe is this?"
_PROBE_ANSWER = "It is the probe's answer."


class TemplatedTokenizer(Tokenizer, Protocol):
    """A tokenizer that comes with a chat template; :class:`ggtune._core.Model` is one."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source."""


class ChatTemplate:
    """A model's chat template with the texts around question and answer found by rendering a probe.

    Raises :class:`GgtuneError` where the source has syntax errors or can't render one question and answer.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str,
        eos: str,
        end_of: Callable[[str], str],
        special_texts: Callable[[], Iterable[str]] = tuple,
        now: datetime.datetime | None = None,
        name: str = "model",
        title: str = "",
    ) -> None:
        """``end_of(text)`` cuts a text behind its first end token, and gives "" where there is none.

        ``special_texts`` gives the texts of the model's special tokens: what people write never becomes one.

        ``name`` is what finds the template again (:func:`choose_template`), ``title`` what a reader is shown. ``now``
        is the time for templates that write the date (today by default).
        """
        self.name, self.title = name, title or name
        self._dates: set[str] = set()
        self._clock = _Clock()
        self._template = _compile(source, now, self._dates, self._clock)
        self._special = {"bos_token": bos, "eos_token": eos}
        self.bos = ""
        self.after_question = ""
        self.answer_suffix = self.end = ""

        messages = [{"role": "user", "content": _PROBE_QUESTION}]
        prompt = self.render_messages(messages, add_generation_prompt=True)
        if bos and prompt.startswith(bos):
            self.bos = bos
        _, found, self.after_question = prompt.rpartition(_PROBE_QUESTION)
        if not found:
            raise GgtuneError("The model's chat template does not show the question. Choose another --template.")
        messages.append({"role": "assistant", "content": _PROBE_ANSWER})
        _, found, tail = self.render_messages(messages, add_generation_prompt=False).rpartition(_PROBE_ANSWER)
        if not found:
            raise GgtuneError("The model's chat template does not show the answer. Choose another --template.")
        # what follows the end token ("\n" mostly) is never generated
        ended = end_of(tail)
        ends = (ended[start:] for start in reversed(range(len(ended))))
        self.end = next((end for end in ends if end_of(end) == end), "")
        self.answer_suffix = ended.removesuffix(self.end)
        self._renderer = ConversationRenderer(
            self._render_turns, bos=self.bos, end_of=end_of, special_texts=special_texts
        )

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings at which generation has to stop: the end token's text."""
        return (self.end,) if self.end else ()

    @property
    def thinking_tags(self) -> tuple[ThinkingTags, ...]:
        """What stands around an assistant's thoughts."""
        return self._renderer.thinking_tags

    def render_prompt(self, system: str | None, question: str) -> Rendered:
        """Render a turn that waits for its answer. Raises as :meth:`render`."""
        first = (Turn("system", system),) if system else ()
        rendered = self._renderer.render_prompt((*first, Turn("user", question)))
        return Rendered(rendered.bos, rendered.segments, ())

    def render(self, system: str | None, question: str, answer: str) -> Rendered:
        """Render one turn. Raises as :meth:`render_conversation`."""
        return Rendered.of(self.render_conversation(exchange(question, answer, row=0, system=system)))

    def render_conversation(self, conversation: Conversation) -> RenderedConversation:
        """Render turns up to the last assistant's. Raises :class:`GgtuneError` for turns that it has no place for."""
        return self._renderer.render(conversation)

    def _render_turns(
        self, messages: list[dict[str, Any]], tools: Sequence[Any], *, add_generation_prompt: bool
    ) -> str:
        return self.render_messages(messages, add_generation_prompt=add_generation_prompt, tools=tools)

    def dates_in(self, text: str) -> tuple[str, ...]:
        """Dates and times in a rendered text that the template took from the clock."""
        return tuple(sorted(date for date in self._dates if date in text))

    def render_messages(
        self, messages: list[dict[str, Any]], *, add_generation_prompt: bool, tools: Sequence[Any] = ()
    ) -> str:
        """Render a whole conversation, BOS included; a message has ``role`` and ``content``.

        Raises :class:`GgtuneError` where the template refuses it, fails, or takes too long.
        """
        import jinja2

        limit = _MAX_TEXT + 4 * len(str(messages)) + 4 * len(str(tools))
        text: list[str] = []
        n_characters = 0
        self._clock.start(_MAX_SECONDS)
        try:
            for piece in self._template.generate(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) or None,
                documents=None,
                **self._special,
            ):
                n_characters += len(piece)
                if n_characters > limit:
                    raise GgtuneError(f"The model's chat template writes more than {limit:,} characters for one turn.")
                text.append(piece)
        except jinja2.TemplateError as error:
            with_system = bool(messages) and messages[0]["role"] == "system"
            hint = " Leave the system text out, or choose another --template." if with_system else ""
            raise GgtuneError(f"The model's chat template refuses this conversation: {error.message}.{hint}") from error
        except GgtuneError:
            raise
        # the template is a program of the model file's author: any operation in it can fail in any way
        except Exception as error:
            raise GgtuneError(
                f"The model's chat template fails: {type(error).__name__}: {error}. Choose another --template."
            ) from error
        return "".join(text)


def model_template(tokenizer: TemplatedTokenizer, *, now: datetime.datetime | None = None) -> ChatTemplate:
    """Make the template ``model`` of a GGUF. Raises :class:`GgtuneError` where it has none or a broken one."""
    if not tokenizer.chat_template:
        raise GgtuneError(
            "The model has no chat template of its own. Choose a --template: " + ", ".join(TEMPLATES) + "."
        )
    return _made(tokenizer, tokenizer.chat_template, now=now)


def jinja_source(name: str) -> tuple[str, str] | None:
    """Source and title of a template that is no named one: ``jinja:SOURCE``, or a file of it; None for other names.

    Raises :class:`GgtuneError` for a file that can't be read.
    """
    if name.startswith(JINJA):
        return name.removeprefix(JINJA), "a Jinja file"
    path = Path(name)
    if path.suffix.lower() not in _JINJA_SUFFIXES and not (path.suffix and path.is_file()):
        return None
    try:
        return path.read_text(encoding="utf-8"), path.name
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise GgtuneError(f"{name}: the chat template can't be read: {reason}.") from error


def _made(
    tokenizer: TemplatedTokenizer,
    source: str,
    *,
    now: datetime.datetime | None,
    name: str = "model",
    title: str = "",
) -> ChatTemplate:
    def end_of(text: str) -> str:
        tokens = tokenizer.tokenize(text, parse_special=True)
        for token in tokens.tolist():
            end = token_text(tokenizer, token) if tokenizer.is_end_token(token) else ""
            if end and end in text:
                return text[: text.index(end) + len(end)]
        return ""

    return ChatTemplate(
        source,
        name=name,
        title=title,
        bos=token_text(tokenizer, tokenizer.bos_token),
        eos=token_text(tokenizer, tokenizer.eos_token),
        end_of=end_of,
        special_texts=lambda: special_texts(tokenizer),
        now=now,
    )


def choose_template(
    name: str | None, tokenizer: TemplatedTokenizer, *, now: datetime.datetime | None = None
) -> Template:
    """Find the template of that name; None is ``model`` where the GGUF has one, else ``plain``.

    A Jinja file is a template, too; its name then is ``jinja:`` and its source, so that it is found again without the
    file.

    Raises :class:`GgtuneError` for an unknown name or a model without chat template.
    """
    if name is None:
        name = "model" if tokenizer.chat_template else "plain"
    if name == "model":
        return model_template(tokenizer, now=now)
    if name in TEMPLATES:
        return TEMPLATES[name]
    if found := jinja_source(name):
        source, title = found
        return _made(tokenizer, source, now=now, name=JINJA + source, title=title)
    raise GgtuneError(
        f"There is no template '{name}'. Templates: {', '.join(TEMPLATES)}, model, or a Jinja file (*.jinja)."
    )


class _Clock(threading.local):
    """Ends a template's code, which may loop without writing anything, after some time. Each thread has its own."""

    _end = math.inf
    _seconds = 0.0

    def start(self, seconds: float) -> None:
        """Begin a turn."""
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def check(self) -> str:
        """Raise :class:`GgtuneError` when the time is over; "" before."""
        if time.monotonic() > self._end:
            raise GgtuneError(f"The model's chat template takes more than {self._seconds:g} s for one turn.")
        return ""


def _compile(source: str, now: datetime.datetime | None, dates: set[str], clock: _Clock) -> jinja2.Template:
    """Compile a chat template that notes in ``dates`` what it takes from the calendar.

    It looks at ``clock`` in every turn of a loop and at every call: nothing else can take long in Jinja's language.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}...{% endgeneration %}`` only marks its text."""

        tags = {"generation"}  # noqa: RUF012  Jinja declares it as an instance attribute

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        """Without the operators that make huge values out of small ones."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(side) if isinstance(side, (str, list, tuple)) else abs(side) for side in (left, right)]
            if operator == "**" or sizes[0] * sizes[1] > _MAX_TEXT:
                raise SecurityError(f"the operator {operator} with too large a result")
            return super().call_binop(context, operator, left, right)

        def call(self, *arguments: Any, **named: Any) -> Any:
            clock.check()
            return super().call(*arguments, **named)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format_string: str) -> str:
        date = (now or datetime.datetime.now()).strftime(format_string)
        dates.add(date)
        return date

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.extend(check_clock=clock.check)
    try:
        tree = environment.parse(source)
        for loop in tree.find_all(nodes.For):
            check = nodes.ExprStmt(nodes.Call(nodes.EnvironmentAttribute("check_clock"), [], [], None, None))
            loop.body.insert(0, check.set_lineno(loop.lineno).set_environment(environment))
        return environment.from_string(tree)
    except jinja2.TemplateSyntaxError as error:
        raise GgtuneError(
            f"The model's chat template has an error in line {error.lineno}: {error.message}. "
            "Choose another --template."
        ) from error
    except (RecursionError, MemoryError) as error:
        raise GgtuneError("The model's chat template is nested too deep. Choose another --template.") from error
