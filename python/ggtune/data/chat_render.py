"""Conversations rendered by a Jinja chat template, with the words of each turn found in the result.

The template is rendered twice: with the texts themselves, and with a marker in place of each. Where both agree but for
the markers, these tell what the template wrote from what people wrote. What an assistant writes starts where the text
up to its turn with a generation prompt ends, and goes to the first end token behind its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ggtune.data.conversation import Conversation, Turn
from ggtune.data.templates import RenderedConversation, Segment
from ggtune.errors import GgtuneError

# of letters and digits alone: nothing that a template looks for, strips, or escapes
_MARK = "7Mk{index:03d}Zq{part}9"
_TEXT, _THINKING = "T", "H"

Render = Callable[..., str]
"""``render(messages, tools, add_generation_prompt=...)``: the text, BOS included."""


@dataclass(frozen=True)
class _Piece:
    """Template text, or (``turn`` >= 0) the place of a turn's text or thinking."""

    text: str
    turn: int = -1
    thinking: bool = False


@dataclass(frozen=True)
class _Form:
    """What a template writes around the texts of conversations that have the same roles and parts."""

    pieces: tuple[_Piece, ...]
    prompt: tuple[_Piece, ...] | None  # in place of the pieces in front of the last turn's words
    starts: dict[int, int]  # of each assistant's turn: characters of the marked text in front of what it writes
    ends: dict[
        int, tuple[int, int]
    ]  # behind its words: where its end token starts and ends, the same where it has none


class ConversationRenderer:
    """Renders conversations by one template."""

    def __init__(self, render: Render, *, bos: str, end_of: Callable[[str], str]) -> None:
        """``end_of(text)`` cuts a text behind its first end token, and gives "" where there is none."""
        self._render = render
        self._bos = bos
        self._end_of = end_of
        self._forms: dict[tuple[object, ...], _Form] = {}
        self.leaves_out_thinking = False  # it has left out what an assistant thought in an earlier turn

    def render(self, conversation: Conversation) -> RenderedConversation:
        """Render up to the last assistant's turn. Raises :class:`GgtuneError` where the template can't show a turn."""
        turns = _up_to_last_answer(conversation.turns)
        tools = conversation.tools
        form = self._form(turns, tools)
        inlined = turns[-1].thinking != "" and not any(p.thinking and p.turn == len(turns) - 1 for p in form.pieces)
        if inlined:  # the template knows no thinking: it stands in front of the answer, as the model writes it
            turns = (*(replace(turn, thinking="") for turn in turns[:-1]), _inlined(turns[-1]))
            form = self._form(turns, tools)
        thinking = {piece.turn for piece in form.pieces if piece.thinking}
        if any(turn.thinking and i not in thinking for i, turn in enumerate(conversation.turns[: len(turns) - 1])):
            self.leaves_out_thinking = True
        messages = [message_of(turn) for turn in turns]
        found = _match(form.pieces, turns, self._render(messages, tools, add_generation_prompt=False))
        pieces = form.pieces
        if found is not None and form.prompt is not None:
            prompt = _match(form.prompt, turns, self._render(messages[:-1], tools, add_generation_prompt=True))
            n_words = _n_before_words(pieces, len(turns) - 1)
            found = [*prompt, *found[n_words:]] if prompt is not None else None
            pieces = (*form.prompt, *pieces[n_words:])
        if found is None and inlined:
            raise GgtuneError(
                "The model's chat template leaves out what the assistant thinks. Take the thinking out of the data, or "
                "choose another --template."
            )
        segments = _segments(form, pieces, found, turns) if found is not None else self._by_prompts(turns, tools)
        if inlined:
            segments = [part for segment in segments for part in _split_thinking(segment)]
        bos = self._bos if segments and segments[0].text.startswith(self._bos) else ""
        if bos:
            segments[0] = replace(segments[0], text=segments[0].text.removeprefix(bos))
        return RenderedConversation(bos, tuple(s for s in segments if s.text or s.is_end))

    def _by_prompts(self, turns: Sequence[Turn], tools: Sequence[Any]) -> list[Segment]:
        """Find the assistant's turns in a text whose other turns the template has changed (JSON written anew, say)."""
        text = self._render([message_of(turn) for turn in turns], tools, add_generation_prompt=False)
        segments: list[Segment] = []
        done = 0
        for i, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self._prompt(turns[:i], tools, needed=False)
            messages = [message_of(before) for before in turns[: i + 1]]
            written = self._render(messages, tools, add_generation_prompt=False)
            at = written.find(turn.text.strip(), len(prompt))
            known = text.startswith(prompt) and text.startswith(written) and written.startswith(prompt)
            if not prompt or not known or at < 0 or len(prompt) < done:
                raise GgtuneError(
                    "The model's chat template changes the text of a turn, so that it is unknown which words are the "
                    "assistant's. Choose another --template."
                )
            words_end = at + len(turn.text.strip())
            end, over = self._end_behind(written[words_end:], words_end)
            segments += [Segment(text[done : len(prompt)]), Segment(text[len(prompt) : at], turn=i)]
            segments += [Segment(text[at:words_end], literal=True, turn=i), Segment(text[words_end:end], turn=i)]
            segments.append(Segment(text[end:over], turn=i, is_end=True))
            done = over
        return segments

    def _form(self, turns: Sequence[Turn], tools: Sequence[Any]) -> _Form:
        if tools or any(turn.fields for turn in turns):  # what they hold is in the form, too
            return self._learn(turns, tools)
        key = tuple((turn.role, bool(turn.text), bool(turn.thinking)) for turn in turns)
        if key not in self._forms:
            self._forms[key] = self._learn(turns, tools)
        return self._forms[key]

    def _learn(self, turns: Sequence[Turn], tools: Sequence[Any]) -> _Form:
        marked = [_marked(turn, i) for i, turn in enumerate(turns)]
        text = self._render([message_of(turn) for turn in marked], tools, add_generation_prompt=False)
        pieces = _pieces(text, marked)
        shown = {piece.turn for piece in pieces if piece.turn >= 0 and not piece.thinking}
        for i, turn in enumerate(turns):
            if turn.text and i not in shown:
                raise GgtuneError(
                    f"The model's chat template leaves out the text of turn {i + 1} ({turn.role}). Leave it out of the "
                    "data, or choose another --template."
                )
        prompts = {
            i: self._prompt(marked[:i], tools, needed=i == len(turns) - 1)
            for i, turn in enumerate(turns)
            if turn.role == "assistant"
        }
        last = len(turns) - 1
        prompt = None
        if not text.startswith(prompts[last]) and _words(text, marked[last]) is not None:
            # a generation prompt that opens what a whole text has not ("<think>"): the model is asked with it
            prompt = _pieces(prompts[last], marked)
            text = prompts[last] + text[_words(text, marked[last]) :]
        starts, ends = {}, {}
        for i, before in prompts.items():
            words = _words(text, marked[i])
            if before and text.startswith(before):
                starts[i] = len(before)
            elif words is not None:
                starts[i] = words
            else:
                raise GgtuneError(
                    f"It can't be told where turn {i + 1} (assistant) starts in what the model's chat template writes. "
                    "Choose another --template."
                )
            ends[i] = self._end(text, marked, i, starts[i])
            for name in _called(turns[i]):
                if name not in text[starts[i] : ends[i][1]]:
                    raise GgtuneError(
                        f"The model's chat template leaves out the tool call of turn {i + 1}. Leave it out of the "
                        "data, or choose another --template."
                    )
        return _Form(pieces, prompt, starts, ends)

    def _prompt(self, marked: Sequence[Turn], tools: Sequence[Any], *, needed: bool) -> str:
        try:
            return self._render([message_of(turn) for turn in marked], tools, add_generation_prompt=True)
        except GgtuneError:  # it may refuse to be asked in the middle
            if needed:
                raise
            return ""

    def _end(self, text: str, marked: Sequence[Turn], index: int, start: int) -> tuple[int, int]:
        """Where the end token of an assistant's turn starts and ends in a marked text."""
        words_end = max(
            (text.rfind(mark) + len(mark) for mark in _marks(marked[index]) if mark in text[start:]), default=start
        )
        later = (text.find(mark, words_end) for turn in marked[index + 1 :] for mark in _marks(turn))
        return self._end_behind(text[words_end : min((at for at in later if at >= 0), default=len(text))], words_end)

    def _end_behind(self, tail: str, words_end: int) -> tuple[int, int]:
        ended = self._end_of(tail)
        end = next((ended[k:] for k in reversed(range(len(ended))) if self._end_of(ended[k:]) == ended[k:]), "")
        return words_end + len(ended) - len(end), words_end + len(ended)


def _segments(form: _Form, pieces: Sequence[_Piece], texts: Sequence[str], turns: Sequence[Turn]) -> list[Segment]:
    """Cut the pieces at the turns' bounds. ``texts`` are the conversation's own in place of the marks."""
    bounds = {*form.starts.values(), *(at for span in form.ends.values() for at in span)}
    last = max(form.starts)
    segments: list[Segment] = []
    at = 0  # in the marked text
    for piece, text in zip(pieces, texts, strict=True):
        over = at + len(piece.text)
        if piece.turn >= 0:
            turn = piece.turn if turns[piece.turn].role == "assistant" else -1
            segments.append(Segment(text, literal=True, turn=turn, thinking=piece.thinking))
        else:
            cuts = sorted({at, over, *(bound for bound in bounds if at < bound < over)})
            for begin, end in pairwise(cuts):
                turn = next((t for t, start in form.starts.items() if start <= begin < form.ends[t][1]), -1)
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


def message_of(turn: Turn) -> dict[str, Any]:
    """Make the message that a template gets."""
    message: dict[str, Any] = {"role": turn.role, "content": turn.text, **turn.fields}
    if turn.thinking:  # templates know it by one of these names
        message |= {"reasoning_content": turn.thinking, "thinking": turn.thinking}
    return message


def _called(turn: Turn) -> list[str]:
    """Names of the functions that an assistant's turn calls."""
    calls = turn.fields.get("tool_calls") or []
    functions = [call.get("function", call) for call in calls if isinstance(call, Mapping)]
    return [str(function["name"]) for function in functions if isinstance(function, Mapping) and "name" in function]


def _marked(turn: Turn, index: int) -> Turn:
    text = _MARK.format(index=index, part=_TEXT) if turn.text else ""
    thinking = _MARK.format(index=index, part=_THINKING) if turn.thinking else ""
    return Turn(turn.role, text, thinking=thinking, fields=turn.fields)


def _marks(turn: Turn) -> list[str]:
    return [mark for mark in (turn.thinking, turn.text) if mark]


def _words(text: str, turn: Turn) -> int | None:
    """Where a turn's words start; None where it has none."""
    return min((at for at in map(text.find, _marks(turn)) if at >= 0), default=None)


def _n_before_words(pieces: Sequence[_Piece], turn: int) -> int:
    return next(i for i, piece in enumerate(pieces) if piece.turn == turn)


_THINK, _END_THINK = "<think>\n", "\n</think>\n\n"


def _inlined(turn: Turn) -> Turn:
    return replace(turn, text=f"{_THINK}{turn.thinking}{_END_THINK}{turn.text}", thinking="")


def _split_thinking(segment: Segment) -> list[Segment]:
    """Take apart what :func:`_inlined` joined: the tags are the model's, the words are text."""
    if segment.turn < 0 or not segment.literal or not segment.text.startswith(_THINK):
        return [segment]
    thinking, _, answer = segment.text.removeprefix(_THINK).partition(_END_THINK)
    tag = Segment(_THINK, turn=segment.turn, thinking=True)
    return [
        tag,
        replace(segment, text=thinking, thinking=True),
        replace(tag, text=_END_THINK),
        replace(segment, text=answer),
    ]


def _pieces(text: str, marked: Sequence[Turn]) -> tuple[_Piece, ...]:
    """Cut a marked text at its marks."""
    places = sorted(
        (at, mark, i, mark == turn.thinking)
        for i, turn in enumerate(marked)
        for mark in _marks(turn)
        for at in _occurrences(text, mark)
    )
    pieces: list[_Piece] = []
    done = 0
    for at, mark, turn, thinking in places:
        pieces += [_Piece(text[done:at]), _Piece(mark, turn, thinking)]
        done = at + len(mark)
    return (*pieces, _Piece(text[done:]))


def _occurrences(text: str, mark: str) -> list[int]:
    found, at = [], text.find(mark)
    while at >= 0:
        found.append(at)
        at = text.find(mark, at + 1)
    return found


def _match(pieces: Sequence[_Piece], turns: Sequence[Turn], text: str) -> list[str] | None:
    """Find the pieces in a text: the template's as they are, the others as the turn has them or stripped."""
    found: list[str] = []
    at = 0
    for i, piece in enumerate(pieces):
        if piece.turn < 0:
            if not text.startswith(piece.text, at):
                return None
            found.append(piece.text)
        else:
            turn = turns[piece.turn]
            whole = turn.thinking if piece.thinking else turn.text
            forms = dict.fromkeys(
                (whole, whole.strip(), whole.rstrip(), whole.lstrip(), whole.strip("\n"), whole.lstrip("\n"))
            )
            following = pieces[i + 1].text if i + 1 < len(pieces) else ""
            fits = next((form for form in forms if text.startswith(form + following, at)), None)
            if fits is None:
                return None
            found.append(fits)
        at += len(found[-1])
    return found if at == len(text) else None
