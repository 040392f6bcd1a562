"""Hard line wraps undone: the lines of running text joined to paragraphs, everything else left as it stands.

A line was broken by its width where the next line's first word had no more room on it. Verse, addresses and headings
have lines that end earlier, verse also capitals at their starts; tables have gaps inside of their lines; lists have
items. A text whose paragraphs are single long lines has no wraps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ggtune.text.document import Document
from ggtune.text.hyphens import Vocabulary, join_lines

_ITEM = re.compile(r"\s*(?:[-*+•‣▪]\s+|\(?(?:[0-9]{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)]\s+|\[[0-9A-Za-z]{1,4}\]:?\s+)\S")
_BULLET = re.compile(r"\s*[-*+•‣▪]\s+\S")
_MARKUP = re.compile(r"\s*(?:#{1,6}\s|>|\||\+[-=+]|```|~~~|={3,}$|-{3,}$)")
_GAP = re.compile(r"\S(?: {3,}|\t+)\S")
_FENCE = re.compile(r"\s*(?:```|~~~)")
_PARAGRAPH_END = re.compile(r"[.!?:][\"'”’)\]»_]*\s*$")

_LONG_LINE = 150  # longer ones were not broken by a width
_LONG_SHARE = 0.3  # of the characters in such lines: a text without wraps
_NARROWEST = 40
_SLACK = 0.15  # of the width: pages and emphasis were marked after the breaking, and hands break early
_TIGHT_SLACK = 0.08  # where there is a single pair of lines to judge by
_FULL_SHARE = 0.6
_SHORT = 0.6  # of the width: no line of a paragraph ends here but the last one
_SHORT_AT_END = 0.75  # nor here, where a sentence ends with it
_SHORT_EXACT = 0.85  # the same as _SHORT where a program broke the lines
_EXACT_SHARE = 0.9
_VERSE_CAPITALS = 0.8
_FEWEST_VERSES = 3


@dataclass
class _Piece:
    """Lines that are one; ``apart``: a blank line belongs before them."""

    lines: list[str]
    apart: bool = False


def unwrap(document: Document, *, hyphens: bool) -> tuple[int, int]:
    """Join the lines of paragraphs in place. Returns how many line breaks went, and how many hyphens with them."""
    lines = document.lines
    width = wrap_width(document)
    if width is None:
        return 0, 0
    vocabulary = Vocabulary(lines) if hyphens else None
    fenced = _fenced(lines)
    out: list[str] = []
    numbers: list[int] = []
    n_joined = n_hyphens = at = 0
    for block in document.blocks():
        out += lines[at : block.start]
        numbers += document.numbers[at : block.start]
        at = block.start
        own = lines[block.start : block.end]
        for piece in [_Piece([line]) for line in own] if fenced[block.start] else _pieces(own, width):
            if piece.apart:
                out.append("")
                numbers.append(document.numbers[at])
            joined = piece.lines[0]
            for line in piece.lines[1:]:
                joined, hyphen_went = join_lines(joined, line, vocabulary)
                n_hyphens += hyphen_went
            out.append(joined)
            numbers.append(document.numbers[at])
            n_joined += len(piece.lines) - 1
            at += len(piece.lines)
    document.lines = out + lines[at:]
    document.numbers = numbers + document.numbers[at:]
    return n_joined, n_hyphens


@dataclass(frozen=True)
class Width:
    """What broke the lines of a text."""

    usual: int  # most lines are no longer
    longest: int
    exact: bool  # it broke nearly every line where the next word had no room, as a program does


def wrap_width(document: Document) -> Width | None:
    """Return the width that broke the lines; None where the text was not broken by one."""
    lines = document.lines
    n_characters = sum(map(len, lines))
    if sum(len(line) for line in lines if len(line) > _LONG_LINE) > _LONG_SHARE * n_characters:
        return None
    pairs = [
        (len(line.rstrip()), _fill(line, following))
        for block in document.blocks()
        for line, following in pairwise(lines[block.start : block.end])
        if len(line) <= _LONG_LINE and not _MARKUP.match(line)
    ]
    lengths = sorted(length for length, _ in pairs)
    usual = lengths[int(0.95 * len(lengths))] if lengths else 0
    if usual < _NARROWEST:
        return None
    longest = lengths[int(0.995 * len(lengths))]
    n_running = sum(fill > _SHORT_AT_END * usual for _, fill in pairs)
    return Width(usual, longest, sum(fill > longest for _, fill in pairs) >= _EXACT_SHARE * n_running)


def is_verbatim(own: Sequence[str]) -> bool:
    """Whether white space inside of these lines means something: tables, markup, indented blocks."""
    return is_table(own) or all(map(_indent, own)) or any(map(_MARKUP.match, own))


def is_table(own: Sequence[str]) -> bool:
    """Whether at least half of the lines, and two, have gaps inside."""
    gaps = sum(_GAP.search(line) is not None for line in own)
    return gaps >= 2 and gaps * 2 >= len(own)


def _fenced(lines: Sequence[str]) -> list[bool]:
    """Which lines are code between Markdown's fences."""
    if sum(_FENCE.match(line) is not None for line in lines) % 2:
        return [False] * len(lines)
    inside, found = False, []
    for line in lines:
        fence = _FENCE.match(line) is not None
        found.append(inside or fence)
        inside ^= fence
    return found


def _pieces(own: list[str], width: Width) -> list[_Piece]:
    """Say which lines of a block are one. Where the block is no running text each stands for itself."""
    if is_table(own) or any(map(_MARKUP.match, own)):
        return [_Piece([line]) for line in own]
    items = _item_starts(own, width)
    if items:
        pieces = _text_pieces(own[: items[0]], width)
        for start, end in pairwise([*items, len(own)]):
            pieces += _item_pieces(own[start:end], width)
        return pieces
    return _text_pieces(own, width)


def _item_starts(own: list[str], width: Width) -> list[int]:
    """Lines that start an item of a list; a number or dash at the start of a line that was broken there does not."""
    bullets = sum(_BULLET.match(line) is not None for line in own)
    starts: list[int] = []
    for k, line in enumerate(own):
        if _ITEM.match(line) and (
            k == 0
            or starts
            or (bullets > 1 and _BULLET.match(line))
            or not _is_full(own[k - 1], line, width, _TIGHT_SLACK)
        ):
            starts.append(k)
    return starts


def _text_pieces(own: list[str], width: Width) -> list[_Piece]:
    if not _is_prose(own, width):
        return [_Piece([line]) for line in own]
    pieces = [_Piece([own[0].strip()])]
    at_margin = not all(map(_indent, own))
    for before, line in pairwise(own):
        short = _fill(before, line) < (_SHORT_EXACT if width.exact else _SHORT) * width.usual
        if at_margin and _indent(line) and not _indent(before) and _PARAGRAPH_END.search(before):
            pieces.append(_Piece([line.strip()], apart=True))  # paragraphs that only an indent tells apart
        elif short or _ends_short(before, line, width):
            pieces.append(_Piece([line.strip()]))
        else:
            pieces[-1].lines.append(line)
    return pieces


def _item_pieces(own: list[str], width: Width) -> list[_Piece]:
    pieces = [_Piece([own[0]])]
    for before, line in pairwise(own):
        if _indent(line) > _indent(own[0]) or _is_full(before, line, width, _SLACK):
            pieces[-1].lines.append(line)
        else:
            pieces.append(_Piece([line]))
    return pieces


def _is_prose(own: Sequence[str], width: Width) -> bool:
    pairs = list(pairwise(own))
    if not pairs:
        return False
    following = [line for _, line in pairs]
    shouted = "".join(own).isupper()
    if len(pairs) >= _FEWEST_VERSES and not shouted and _capitals(following) >= _VERSE_CAPITALS:
        return False
    slack = _SLACK if len(pairs) > 1 else _TIGHT_SLACK
    full = [_is_full(*pair, width, slack) for pair in pairs]
    ends = sum(_ends_short(*pair, width) and not is_full for pair, is_full in zip(pairs, full, strict=True))
    return any(full) and sum(full) >= _FULL_SHARE * (len(pairs) - ends)


def _ends_short(line: str, following: str, width: Width) -> bool:
    """Whether a sentence ends with a line that had room for more."""
    fill = _fill(line, following)
    short = fill <= width.longest if width.exact else fill < _SHORT_AT_END * width.usual
    return short and _PARAGRAPH_END.search(line) is not None


def _is_full(line: str, following: str, width: Width, slack: float) -> bool:
    return _fill(line, following) > (1 - slack) * width.usual


def _fill(line: str, following: str) -> int:
    """How long the line would have become with the next one's first word."""
    word = re.match(r"\s*([\u3000-\u9fff]|\S+)", following)
    return len(line.rstrip()) + 1 + (len(word[1]) if word else 0)


def _capitals(lines: Sequence[str]) -> float:
    """Share of the lines with letters of two cases at their start that start with a capital."""
    firsts = [match[0] for line in lines if (match := re.search(r"[^\W\d_]", line))]
    cased = [letter for letter in firsts if letter.lower() != letter.upper()]
    return sum(letter.isupper() for letter in cased) / len(cased) if cased else 0.0


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
