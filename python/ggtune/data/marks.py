"""Texts with marks in place of what people wrote: rendered, they tell it from what a template wrote."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggtune.data.conversation import Turn
from ggtune.data.spelled import MARK as SPELLED_MARK
from ggtune.data.spelled import SpelledTokens

# of letters and digits alone: nothing that a template looks for, strips, or escapes
_MARK = "7Mk{index:03d}Zq{part}9"
_TEXT, _THINKING = "T", "H"
TALK = "7Tk5Zq9"
"""The words of a turn that was not said."""


@dataclass(frozen=True)
class Piece:
    """A piece of marked text: the template's, a turn's text or thinking (``turn`` >= 0), or a mark for ``spelled``."""

    text: str
    turn: int = -1
    thinking: bool = False
    spelled: str | None = None


@dataclass(frozen=True)
class MarkedTurns:
    """A conversation with marks in place of its texts, or of the special tokens that they spell."""

    turns: tuple[Turn, ...]
    tools: tuple[Any, ...]
    spelled: SpelledTokens


def with_marks(turn: Turn, index: int) -> Turn:
    """Put marks in place of a turn's text and thinking, where it has them."""
    text = _MARK.format(index=index, part=_TEXT) if turn.text else ""
    thinking = _MARK.format(index=index, part=_THINKING) if turn.thinking else ""
    return replace(turn, text=text, thinking=thinking)


def marks_of(turn: Turn) -> list[str]:
    """Give a turn's marks; none for one that has its own texts."""
    return [mark for mark in (turn.thinking, turn.text) if _IS_MARK.fullmatch(mark)]


_IS_MARK = re.compile(_MARK.replace("{index:03d}", r"\d{3,}").replace("{part}", f"[{_TEXT}{_THINKING}]"))
_ANY_MARK = re.compile(f"({_IS_MARK.pattern}|{SPELLED_MARK.pattern})")


def words_at(text: str, turn: Turn) -> int | None:
    """Where a turn's words start; None where it has none."""
    return min((at for at in map(text.find, marks_of(turn)) if at >= 0), default=None)


def common_tags(*texts: str) -> int:
    """How much the texts have in common from their start, without a tag that they have in part."""
    at = n_common(*texts)
    opened = re.search(r"[<\[][^<>\[\]\n]*\Z", texts[0][:at]) if at < min(map(len, texts)) else None
    return opened.start() if opened else at


def n_common(first: str, *others: str) -> int:
    """How many characters texts have in common from their start."""
    low, high = 0, min(map(len, (first, *others)))
    while low < high:
        middle = (low + high + 1) // 2
        same = all(other.startswith(first[:middle]) for other in others)
        low, high = (middle, high) if same else (low, middle - 1)
    return low


def overlap(text: str, following: str) -> int:
    """How much of a text's end a following one says again."""
    lengths = range(min(len(text), len(following)), 0, -1)
    return next((n for n in lengths if following[:n].strip() and text.endswith(following[:n])), 0)


def pieces_of(text: str, marked: MarkedTurns) -> tuple[Piece, ...]:
    """Cut a marked text at its marks."""
    known = {
        mark: Piece(mark, i, mark == turn.thinking) for i, turn in enumerate(marked.turns) for mark in marks_of(turn)
    }
    pieces: list[Piece] = []
    for i, part in enumerate(_ANY_MARK.split(text)):
        spelled = marked.spelled.text_at(part) if i % 2 else None
        pieces.append(Piece(part, spelled=spelled) if spelled is not None else known.get(part, Piece(part)))
    return tuple(pieces)


def match(pieces: Sequence[Piece], turns: Sequence[Turn], text: str) -> list[str] | None:
    """Find the pieces in a text: the template's as they are, the others as the turn has them or stripped."""
    found: list[str] = []
    at = 0
    for i, piece in enumerate(pieces):
        if piece.turn < 0:
            own = piece.text if piece.spelled is None else piece.spelled
            if not text.startswith(own, at):
                return None
            found.append(own)
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
