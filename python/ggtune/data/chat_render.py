"""Conversations rendered by a Jinja chat template, with the words of each turn found in the result.

The template is rendered twice: with the texts themselves, and with a marker in place of each. Where both agree but for
the markers, these tell what the template wrote from what people wrote. Where they do not, because the template writes a
turn anew (a tool's result as JSON, say), the assistant's words alone get markers. What an assistant writes starts where
the text up to its turn with a generation prompt ends, and goes to the first end token behind its words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

from ggtune.data.conversation import ROLES, Conversation, Role, Turn
from ggtune.data.marks import (
    TALK,
    MarkedTurns,
    Piece,
    common_tags,
    marks_of,
    match,
    n_common,
    overlap,
    pieces_of,
    with_marks,
    words_at,
)
from ggtune.data.messages import STYLES, MessageStyle, calls_of
from ggtune.data.segments import RenderedConversation, Segment, joined
from ggtune.data.spelled import SpelledTokens
from ggtune.data.thinking import THINK, ThinkingTags, find_tags, mark_thinking
from ggtune.errors import GgtuneError

_ASSISTANT: tuple[Role, ...] = ("assistant",)

Render = Callable[..., str]
"""``render(messages, tools, add_generation_prompt=...)``: the text, BOS included."""


@dataclass(frozen=True)
class _Form:
    """What a template writes around the texts of conversations that have the same roles and parts.

    ``pieces`` are those of the whole text. The first ``n_replaced`` give way to ``prompt``, with which the model is
    asked, where that is no start of the whole text. ``starts`` and ``ends`` count characters of the marked text that
    this makes.
    """

    style: MessageStyle
    pieces: tuple[Piece, ...]
    prompt: tuple[Piece, ...]
    n_replaced: int
    starts: dict[int, int]  # of each assistant's turn: in front of what it writes
    # behind its words: where its end token starts and ends, the same where it has none
    ends: dict[int, tuple[int, int]]
    tails: dict[int, tuple[str, str]]  # the same as texts: behind the words to the end token, and that

    @property
    def final_pieces(self) -> tuple[Piece, ...]:
        """The pieces of the text that is trained on."""
        return (*self.prompt, *self.pieces[self.n_replaced :])

    def shows_thinking_of(self, turn: int) -> bool:
        return any(piece.thinking and piece.turn == turn for piece in self.final_pieces)


class ConversationRenderer:
    """Renders conversations by one template."""

    def __init__(
        self,
        render: Render,
        *,
        bos: str,
        end_of: Callable[[str], str],
        special_texts: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """``end_of(text)`` cuts a text behind its first end token, and gives "" where there is none.

        ``special_texts`` gives the texts of the model's special tokens.
        """
        self._render = render
        self._bos = bos
        self._end_of = end_of
        self._spelled = SpelledTokens(special_texts)
        self._forms: dict[tuple[object, ...], _Form] = {}

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render up to the last assistant's turn. Raises :class:`GgtuneError` where the template can't show a turn."""
        turns, tools = _up_to_last_answer(conversation.turns), conversation.tools
        last = len(turns) - 1
        form = self._form(turns, tools)
        inlined = turns[last].thinking != "" and not form.shows_thinking_of(last)
        if not inlined:
            form, segments = self._filled(form, turns, tools)
        else:  # the template knows no thinking: it stands in front of the answer, as the model writes it
            turns = (*turns[:-1], _inlined(turns[last]))
            try:
                form, segments = self._filled(self._form(turns, tools), turns, tools)
            except GgtuneError as error:
                raise GgtuneError(
                    f"The model's chat template leaves out what the assistant thinks in turn {last + 1}. Take the "
                    "thinking out of the data, or choose another --template."
                ) from error
        if inlined:
            segments = [part for segment in segments for part in _split_inlined(segment)]
        return RenderedConversation(
            *self._without_bos(joined(mark_thinking(joined(segments), self.thinking_tags))),
            frozenset(i for i, turn in enumerate(turns) if turn.thinking and not form.shows_thinking_of(i)),
        )

    def _filled(self, form: _Form, turns: Sequence[Turn], tools: Sequence[Any]) -> tuple[_Form, list[Segment]]:
        """Put a conversation's own texts into its form, which may have to be learned anew for them."""
        segments = self._segments(form, turns, tools)
        if segments is None:
            form = self._learn_in(form.style, self._marked(turns, tools, _ASSISTANT), _ASSISTANT, form.tails)
            segments = self._segments(form, turns, tools)
        if segments is None:
            raise _changed(form.final_pieces)
        return form, segments

    def render_prompt(self, turns: Sequence[Turn], tools: Sequence[Any] = ()) -> RenderedConversation:
        """Render turns that wait for an answer. Raises as :meth:`render`."""
        pieces: tuple[Piece, ...] = ()
        for roles in (ROLES, _ASSISTANT):
            marked = self._marked(turns, tools, roles)
            pieces = pieces_of(self._text(marked.turns, marked.tools, STYLES[0], ask=True), marked)
            _check_shown(pieces, turns, roles)
            found = match(pieces, turns, self._text(turns, tools, STYLES[0], ask=True))
            if found is not None:
                segments = [
                    Segment(text, literal=piece.turn >= 0 or piece.spelled is not None)
                    for piece, text in zip(pieces, found, strict=True)
                ]
                return RenderedConversation(*self._without_bos(joined(segments)))
        raise _changed(pieces)

    @cached_property
    def thinking_tags(self) -> tuple[ThinkingTags, ...]:
        """What the template writes around thoughts."""
        asked, answer = Turn("user", "?"), Turn("assistant", "!", thinking="-")
        call = replace(answer, text="", fields={"tool_calls": [{"function": {"name": TALK, "arguments": {}}}]})
        for turn in (answer, call):  # some show what was thought in front of a call alone
            marked = [with_marks(asked, 0), with_marks(turn, 1)]
            try:
                text = self._text(marked, (), STYLES[0], ask=False)
            except GgtuneError:
                continue
            before, shown, behind = text.partition(marked[1].thinking)
            between, answered, _ = behind.partition(marked[1].text or TALK)
            tags = find_tags(before, between) if shown and answered else None
            # a tag in front of a call may be the call's
            if tags is not None and tags != THINK and (turn is answer or "think" in tags.closing.lower()):
                return (tags, THINK)
        return (THINK,)

    def _text(self, turns: Sequence[Turn], tools: Sequence[Any], style: MessageStyle, *, ask: bool) -> str:
        return self._render([style.message(turn) for turn in turns], tools, add_generation_prompt=ask)

    def _without_bos(self, segments: tuple[Segment, ...]) -> tuple[str, tuple[Segment, ...]]:
        if not self._bos or not segments or segments[0].literal or not segments[0].text.startswith(self._bos):
            return "", segments
        first = replace(segments[0], text=segments[0].text.removeprefix(self._bos))
        return self._bos, joined((first, *segments[1:]))

    def _marked(self, turns: Sequence[Turn], tools: Sequence[Any], roles: Sequence[Role]) -> MarkedTurns:
        spelled = self._spelled
        marked = [
            with_marks(turn, i) if turn.role in roles else replace(turn, text=spelled.marked(turn.text))
            for i, turn in enumerate(turns)
        ]
        marked = [replace(turn, fields=spelled.marked(turn.fields)) if turn.fields else turn for turn in marked]
        return MarkedTurns(tuple(marked), spelled.marked(tuple(tools)), spelled)

    def _form(self, turns: Sequence[Turn], tools: Sequence[Any]) -> _Form:
        if tools or any(turn.fields for turn in turns):  # what they hold is in the form, too
            return self._learn(turns, tools)
        key = tuple((turn.role, bool(turn.text), bool(turn.thinking)) for turn in turns)
        if key not in self._forms:
            self._forms[key] = self._learn(turns, tools)
        return self._forms[key]

    def _learn(self, turns: Sequence[Turn], tools: Sequence[Any]) -> _Form:
        marked = self._marked(turns, tools, ROLES)
        refused: list[GgtuneError] = []
        for style in STYLES if any(turn.fields.get("tool_calls") for turn in turns) else STYLES[:1]:
            try:
                return self._learn_in(style, marked, ROLES)
            except GgtuneError as error:
                refused.append(error)
        raise refused[0]

    def _learn_in(
        self,
        style: MessageStyle,
        marked: MarkedTurns,
        roles: Sequence[Role],
        tails: Mapping[int, tuple[str, str]] | None = None,
    ) -> _Form:
        """``tails`` are those of the form in which all turns are marked, where it is known."""
        turns = marked.turns
        last = len(turns) - 1
        whole = text = self._text(turns, marked.tools, style, ask=False)
        prompts = {
            i: self._prompt(marked, i, style, needed=i == last)
            for i, turn in enumerate(turns)
            if turn.role == "assistant"
        }
        cut, prompt = 0, ""
        if not text.startswith(prompts[last]):
            # a generation prompt that opens what a whole text has not ("<think>"): the model is asked with it
            prompt = prompts[last]
            cut = self._start(text, marked, last, prompt, style)
            cut += overlap(prompt, text[cut:])
            text = prompt + text[cut:]
        _check_shown(pieces_of(text, marked), turns, roles)
        starts, ends, found = {}, {}, {}
        for i, before in prompts.items():
            starts[i] = self._start(text, marked, i, before, style)
            words_end = max([starts[i], *(text.rfind(mark) + len(mark) for mark in marks_of(turns[i]) if mark in text)])
            tail = found[i] = tails[i] if tails else self._tail(text, words_end, marked, i, style)
            if not text.startswith("".join(tail), words_end):
                raise _changed(pieces_of(text, marked))
            ends[i] = (words_end + len(tail[0]), words_end + len(tail[0]) + len(tail[1]))
            _check_calls(turns[i], i, text[starts[i] : ends[i][1]])
        replaced = pieces_of(whole[:cut], marked) if prompt else ()
        asked = pieces_of(prompt, marked) if prompt else ()
        return _Form(style, (*replaced, *pieces_of(whole[cut:], marked)), asked, len(replaced), starts, ends, found)

    def _prompt(self, marked: MarkedTurns, turn: int, style: MessageStyle, *, needed: bool) -> str:
        try:
            return self._text(marked.turns[:turn], marked.tools, style, ask=True)
        except GgtuneError:  # it may refuse to be asked in the middle
            if needed:
                raise
            return ""

    def _start(self, text: str, marked: MarkedTurns, index: int, prompt: str, style: MessageStyle) -> int:
        """Where in a marked text an assistant's turn starts that was asked for with ``prompt``."""
        if prompt and text.startswith(prompt):
            return len(prompt)
        turns = marked.turns
        words = words_at(text, turns[index])
        if words is not None and index < len(turns) - 1:
            return words
        # The prompt opens something: the turn starts where both part. For a turn that only calls a tool, one that talks
        # instead shows what is the header of both.
        earlier = [0, *(text.rfind(mark) + len(mark) for turn in turns[:index] for mark in marks_of(turn))]
        asked = self._text_or_none(turns[:index], marked.tools, style) or ""
        header = n_common(asked, prompt)
        talking = None
        if words is None:
            talk = (*turns[:index], replace(turns[index], text=TALK, thinking="", fields={}))
            asks = next((i for i, turn in enumerate(turns) if i > index and turn.role == "user"), len(turns))
            parts = (talk + turns[index + 1 :], talk + turns[asks:])  # a result may want to stand behind its call
            talking = next(filter(None, (self._text_or_none(part, marked.tools, style) for part in parts)), None)
        if words is not None or talking is not None:
            start = common_tags(text, prompt, *filter(None, [talking]))
            if start >= max(header, *earlier) and (words is None or start <= words):
                return start
        if words is None and talking is not None:
            start = common_tags(text, talking)
            if start >= max(earlier):
                return start
        if words is None:
            raise GgtuneError(
                f"It can't be told where turn {index + 1} (assistant) starts in what the model's chat template writes. "
                "Choose another --template."
            )
        return words

    def _text_or_none(self, turns: Sequence[Turn], tools: Sequence[Any], style: MessageStyle) -> str | None:
        try:
            return self._text(turns, tools, style, ask=False)
        except GgtuneError:
            return None

    def _tail(self, text: str, words_end: int, marked: MarkedTurns, index: int, style: MessageStyle) -> tuple[str, str]:
        """What stands behind the words of an assistant's turn in a marked text: up to its end token, and that."""
        turns = marked.turns
        later = (text.find(mark, words_end) for turn in turns[index + 1 :] for mark in marks_of(turn))
        behind = text[words_end : min((at for at in later if at >= 0), default=len(text))]
        calls = 0  # behind the last one's name: a thought in front of it may have an end token of its own
        for name, _ in calls_of(turns[index]):
            at = behind.find(name, calls)
            calls = at + len(name) if at >= 0 else calls
        ended = behind[:calls] + self._end_of(behind[calls:])
        token = next(
            (ended[k:] for k in reversed(range(calls, len(ended))) if self._end_of(ended[k:]) == ended[k:]), ""
        )
        if token or not calls:
            return ended.removesuffix(token), token
        # calls stand behind the words, and nothing that the model knows ends them
        if index == len(turns) - 1:
            return behind, ""
        alone = (turns[: index + 1], tuple(replace(turn, thinking="") for turn in turns[: index + 1]))
        written = (self._text_or_none(part, marked.tools, style) or "" for part in alone)
        return behind[: max(0, *(common_tags(text, part) - words_end for part in written))], ""

    def _segments(self, form: _Form, turns: Sequence[Turn], tools: Sequence[Any]) -> list[Segment] | None:
        """Cut a conversation's text at its turns' bounds; None where the form is not that of its text."""
        found = match(form.pieces, turns, self._text(turns, tools, form.style, ask=False))
        if found is not None and form.prompt:
            prompt = match(form.prompt, turns, self._text(turns[:-1], tools, form.style, ask=True))
            found = [*prompt, *found[form.n_replaced :]] if prompt is not None else None
        return _cut(form, found, turns) if found is not None else None


def _cut(form: _Form, texts: Sequence[str], turns: Sequence[Turn]) -> list[Segment]:
    """Cut the pieces at the turns' bounds. ``texts`` are the conversation's own in place of the marks."""
    bounds = {*form.starts.values(), *(at for span in form.ends.values() for at in span)}
    last = max(form.starts)
    segments: list[Segment] = []
    at = 0  # in the marked text

    def turn_at(place: int) -> int:
        return next((t for t, start in form.starts.items() if start <= place < form.ends[t][1]), -1)

    for piece, text in zip(form.final_pieces, texts, strict=True):
        over = at + len(piece.text)
        if piece.turn >= 0:
            turn = piece.turn if turns[piece.turn].role == "assistant" else -1
            segments.append(Segment(text, literal=True, turn=turn, thinking=piece.thinking))
        elif piece.spelled is not None:
            segments.append(Segment(text, literal=True, turn=turn_at(at)))
        else:
            cuts = sorted({at, over, *(bound for bound in bounds if at < bound < over)})
            for begin, end in pairwise(cuts):
                turn = turn_at(begin)
                is_end = turn >= 0 and form.ends[turn][0] <= begin
                segments.append(Segment(piece.text[begin - at : end - at], turn=turn, is_end=is_end))
        at = over
    # what the template writes behind the last end token is never generated
    kept = segments[: max(i for i, segment in enumerate(segments) if segment.turn == last) + 1]
    if form.ends[last][0] == form.ends[last][1]:  # the template has no end token: the model's own
        kept.append(Segment("", turn=last, is_end=True))
    return kept


def _up_to_last_answer(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise GgtuneError("There is no assistant's turn in this conversation: there is nothing to learn.")
    return tuple(turns[: last + 1])


def _changed(pieces: Sequence[Piece]) -> GgtuneError:
    spelled = next((piece.spelled for piece in pieces if piece.spelled is not None), None)
    if spelled is not None:
        return GgtuneError(
            f"The model's chat template changes a text that spells the special token {spelled!r}, so that it can't be "
            "told from the template's own. Take it out of the data, or choose another --template."
        )
    return GgtuneError(
        "The model's chat template changes the text of a turn, so that it is unknown which words are the assistant's. "
        "Choose another --template."
    )


def _check_shown(pieces: Sequence[Piece], turns: Sequence[Turn], roles: Sequence[Role]) -> None:
    shown = {piece.turn for piece in pieces if piece.turn >= 0 and not piece.thinking}
    for i, turn in enumerate(turns):
        if turn.text and turn.role in roles and i not in shown:
            text = "the system text" if turn.role == "system" else f"the text of turn {i + 1} ({turn.role})"
            raise GgtuneError(
                f"The model's chat template leaves out {text}. Leave it out of the data, or choose another --template."
            )


def _check_calls(turn: Turn, index: int, written: str) -> None:
    """Raise where a template leaves out the calls of a turn, or writes their arguments as only Python does."""
    for name, arguments in calls_of(turn):
        as_python = isinstance(arguments, Mapping) and str(arguments) in written
        if name not in written or (as_python and str(arguments) != json.dumps(arguments, ensure_ascii=False)):
            raise GgtuneError(
                f"The model's chat template leaves out the tool call of turn {index + 1}. Leave it out of the data, or "
                "choose another --template."
            )


_THINK, _END_THINK = f"{THINK.opening}\n", f"\n{THINK.closing}\n\n"


def _inlined(turn: Turn) -> Turn:
    return replace(turn, text=f"{_THINK}{turn.thinking}{_END_THINK}{turn.text}", thinking="")


def _split_inlined(segment: Segment) -> list[Segment]:
    """Take apart what :func:`_inlined` joined: the tags are the model's, the words are text."""
    if segment.turn < 0 or not segment.literal or not segment.text.startswith(_THINK):
        return [segment]
    thinking, _, answer = segment.text.removeprefix(_THINK).partition(_END_THINK)
    return [
        replace(segment, text=_THINK, literal=False),
        replace(segment, text=thinking, thinking=True),
        replace(segment, text=_END_THINK, literal=False),
        replace(segment, text=answer),
    ]
