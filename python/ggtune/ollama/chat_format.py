"""What a chat template writes between the texts of a conversation, found by rendering conversations of marker texts.

A conversation is ``opening Q after_question A after_answer Q ... Q generation``. Each of the four may differ with a
system text, in the first turn, and around the last question; a template that looks at anything else is no format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ggtune.errors import GgtuneError

HOLE = "\x00"
"""Stands for the system text in the texts of a format."""

Turn = tuple[str, str]
"""A question and its answer."""

Render = Callable[[str | None, Sequence[Turn], str], str]
"""``render(system, earlier turns, question)`` gives the text that a model is asked with.

Raises :class:`GgtuneError` for a conversation that the template refuses.
"""

_MAX_TURNS = 4  # as many as it takes to tell the first, a middle and the last one apart
# no template writes such texts, and none changes them (white space, letter case)
_SYSTEM = "7Sy5Zq"
_AFTER_CUT = (">", "]", ":", ".", "\n", " ", HOLE)  # where a text may be cut in two
_BEFORE_CUT = ("<", "[", "#", "\n", " ", HOLE)


class NotExpressibleError(GgtuneError):
    """A template that does more than a :class:`ChatFormat` can say."""


@dataclass(frozen=True)
class Where:
    """What the template's texts may depend on."""

    system: bool  # there is a system text
    first: bool  # in the first turn, or just behind it
    last: bool  # next to the last question


Texts = Mapping[Where, str]


@dataclass(frozen=True)
class ChatFormat:
    """The texts around the system text (a :data:`HOLE` in them), questions and answers."""

    accepts_system: bool
    opening: Texts  # before the first question; last: there is no other
    after_question: Texts  # of an earlier turn; last: of the one before the last question
    after_answer: Texts  # up to the next question; last: that is the last one
    generation: Texts  # after the last question; first: there is no other
    question_start: str  # what of opening and after_answer belongs to the question,
    question_end: str  # and what of after_question and generation
    answer_prefix: str  # what the model writes before its answer,
    answer_suffix: str  # behind it,
    end: str  # and at last
    refusals: tuple[str, ...] = ()  # conversations that the template refuses, and why


def learn_format(
    render: Render, *, answer_prefix: str, answer_suffix: str, end: str, question_end: str = ""
) -> ChatFormat:
    """Find the format of a template. ``question_end`` is what it writes behind a question that awaits no answer.

    Raises :class:`NotExpressibleError` with the reason where there is none, and what ``render`` raises for a
    single question.
    """
    refusals: list[str] = []
    observed: dict[str, dict[Where, str]] = {
        name: {} for name in ("opening", "after_question", "after_answer", "generation")
    }
    accepts_system = _observe(render, observed, refusals, system=False) and _observe(
        render, observed, refusals, system=True
    )
    # a template that refuses later turns gets those that its only turn suggests
    single = Where(system=False, first=True, last=True)
    observed["after_question"].setdefault(single, observed["generation"][single])
    observed["after_answer"].setdefault(single, answer_suffix + end)
    for texts in observed.values():
        _fill(texts, accepts_system)
    tails = [*observed["after_question"].values(), *observed["generation"].values()]
    if not question_end or not all(text.startswith(question_end) for text in tails):
        question_end = common_prefix(tails)
    # the tag that opens every question; it must not take from what closes an answer
    closing = answer_suffix + end
    heads = [*observed["opening"].values(), *(text.removeprefix(closing) for text in observed["after_answer"].values())]
    return ChatFormat(
        accepts_system=accepts_system,
        opening=observed["opening"],
        after_question=observed["after_question"],
        after_answer=observed["after_answer"],
        generation=observed["generation"],
        question_start=_without_leading_space(common_suffix(heads)),
        question_end=question_end,
        answer_prefix=answer_prefix,
        answer_suffix=answer_suffix,
        end=end,
        refusals=tuple(refusals),
    )


def common_prefix(texts: Sequence[str]) -> str:
    """Longest common start that tears no tag apart."""
    shortest = min(texts, key=len)
    same = next((i for i, character in enumerate(shortest) if any(text[i] != character for text in texts)), None)
    prefix = shortest[:same]
    while prefix and prefix not in texts and not prefix.endswith(_AFTER_CUT):
        prefix = prefix[:-1]
    return prefix


def common_suffix(texts: Sequence[str]) -> str:
    """Longest common end that tears no tag apart."""
    shortest = min((text[::-1] for text in texts), key=len)
    same = next((i for i, character in enumerate(shortest) if any(text[-1 - i] != character for text in texts)), None)
    suffix = shortest[:same][::-1]
    while suffix and suffix not in texts and not suffix.startswith(_BEFORE_CUT):
        suffix = suffix[1:]
    return suffix


def _without_leading_space(tag: str) -> str:
    return tag.lstrip() or tag  # a line feed belongs to what stands before the tag


def _observe(render: Render, observed: dict[str, dict[Where, str]], refusals: list[str], *, system: bool) -> bool:
    """Note the texts of all conversations with or without a system text; whether a single question can be asked."""
    for n_turns in range(1, _MAX_TURNS + 1):
        questions = [f"8Qu{turn}Xw" for turn in range(n_turns)]
        answers = [f"9An{turn}Kv" for turn in range(n_turns - 1)]
        try:
            text = render(_SYSTEM if system else None, list(zip(questions, answers, strict=False)), questions[-1])
        except GgtuneError as error:
            if n_turns == 1 and not system:
                raise
            if n_turns > 1:
                refusals.append(f"{n_turns} turns {'with' if system else 'without'} a system text: {error}")
            return n_turns > 1
        parts = _cut(text, [*(part for turn in zip(questions, answers, strict=False) for part in turn), questions[-1]])
        if system and n_turns == 1 and _SYSTEM not in text:
            return False
        if any(HOLE in part for part in parts):
            raise NotExpressibleError("it writes a character U+0000")
        parts = [part.replace(_SYSTEM, HOLE) for part in parts]
        for name, where, part in _places(parts, system):
            known = observed[name].setdefault(where, part)
            if known != part:
                raise NotExpressibleError(
                    f"what it writes depends on more than the place in a chat: {known!r}, {part!r}"
                )
    return True


def _places(parts: Sequence[str], system: bool) -> Iterable[tuple[str, Where, str]]:
    """Name the parts of a text with their places."""
    n_turns = len(parts) // 2
    yield "opening", Where(system, first=True, last=n_turns == 1), parts[0]
    for turn in range(n_turns - 1):
        where = Where(system, first=turn == 0, last=turn == n_turns - 2)
        yield "after_question", where, parts[2 * turn + 1]
        yield "after_answer", where, parts[2 * turn + 2]
    yield "generation", Where(system, first=n_turns == 1, last=True), parts[-1]


def _cut(text: str, markers: Sequence[str]) -> list[str]:
    parts = []
    for marker in markers:
        kind = "question" if marker.startswith("8Qu") else "answer"
        part, found, text = text.partition(marker)
        if not found:
            raise NotExpressibleError(f"it does not show every {kind} as it is and in turn")
        if marker in text:
            raise NotExpressibleError(f"it shows a {kind} twice")
        parts.append(part)
    return [*parts, text]


def _fill(texts: dict[Where, str], accepts_system: bool) -> None:
    """Give a text to every place: one that was not seen gets the most similar one's."""
    seen = dict(texts)
    systems = (False, True) if accepts_system else (False,)
    for where in [Where(s, f, ln) for s in systems for f in (True, False) for ln in (True, False)]:
        if where not in texts:
            texts[where] = max(
                seen.items(),
                key=lambda item: (
                    4 * (item[0].system == where.system)
                    + 2 * (item[0].last == where.last)
                    + (item[0].first == where.first)
                ),
            )[1]
