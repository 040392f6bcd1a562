"""What a transcriber adds to a book: marks of illustrations and pages, and notes of one's own."""

from __future__ import annotations

import re

from ggtune.text.document import Block, Document

ILLUSTRATIONS, NOTES, PAGES = "illustrations", "notes", "pages"

_I = re.IGNORECASE
_ILLUSTRATION = re.compile(
    r"\[\s*_?(?:(?:Decorative\s+|Full-page\s+)?Illustrations?|Illus\.?|Image|Frontispiece|Abbildung|Afbeelding|"
    r"Ilustración|Ilustração|Illustrazione|Kuva|Kuvitus)_?\s*(?=[\]:.,(\n]|$)",
    _I,
)
_NOTE_WORDS = (
    r"(?:Transcriber|Transcribers|Transcriber['’]s|Transcribers['’]|Transcription|Transcriptor)\s*(?:end)?\s?-?notes?"
    r"|Transcriber\s*:|TN\s*:|Notes?\s+(?:by|of|from|du|del|della)\s+(?:the\s+)?(?:transcriber|transcripteur|trascrittore)"
    r"|Notas?\s+del\s+transcriptor|Anmerkung(?:en)?\s+(?:zur\s+Transkription|des\s+Bearbeiters)"
    r"|Opmerkingen\s+van\s+de\s+bewerker"
)
_BRACKETED_NOTE = re.compile(rf"\[\s*_?\s*(?:{_NOTE_WORDS})", _I)
_NOTE_HEADING = re.compile(rf"[\s|+*_=#~-]*(?:{_NOTE_WORDS})\b", _I)
_BARE_NOTE_HEADING = re.compile(rf"[\s|+*_=#~-]*(?:{_NOTE_WORDS})[\s|+*_=:.~-]*$", _I)
_NOTE_END = re.compile(r"\W*End\s+of\s+(?:the\s+)?Transcriber", _I)
_PAGE = re.compile(
    r"[ \t]{0,9}[\[{](?:(?:Pg|Page|Pag|p|S)\.?\s*[0-9]{1,4}[a-z]?|Pg\.?\s*[ivxlc]{1,8})[\]}][ \t]{0,9}", _I
)
_BRACED_PAGE = re.compile(r"\s{0,9}\{[ \t]?[0-9ivxlc]{1,8}[ \t]?\}\s{0,9}$", _I)
_CHAPTER = re.compile(r"\s*(?:chapter|book|part|act|scene|canto|kapitel|chapitre)\b", _I)
_RULE = re.compile(r"\s*(?:[-=_~*+#]\s*){3,}$")

_MOST_LINES = 40  # of a bracket that is closed somewhere
_NOTE_LINES = 80  # of a note at a book's start
_SECTION_GAP = 2  # blank lines after which something else begins
_END_SHARE = 0.8  # behind this share of the lines, and with few to come, a note's heading has only notes below it
_END_LINES = 240


def drop_illustrations(document: Document) -> int:
    """Take ``[Illustration: ...]`` out. Returns how many brackets are not closed, which stay."""
    return _drop_brackets(document, ILLUSTRATIONS, _ILLUSTRATION)


def drop_notes(document: Document) -> int:
    """Take transcribers' notes out, in brackets, boxes and sections. Returns how many brackets are not closed."""
    unclosed = _drop_brackets(document, NOTES, _BRACKETED_NOTE)
    blocks = document.blocks()
    ranges = []
    i = 0
    while i < len(blocks):
        # the rule or box above the heading is in the same block
        head = blocks[i].start
        while head < blocks[i].end - 1 and _RULE.match(document.lines[head]):
            head += 1
        if not _NOTE_HEADING.match(document.lines[head]):
            i += 1
            continue
        last = _note_end(document, blocks, i)
        ranges.append((blocks[i].start, blocks[last].end))
        i = last + 1
    document.drop(NOTES, ranges)
    return unclosed


def _note_end(document: Document, blocks: list[Block], i: int) -> int:
    """Index of the last block of the note whose heading is in block ``i``."""
    lines = document.lines
    bare = all(_BARE_NOTE_HEADING.match(line) or _RULE.match(line) for line in lines[blocks[i].start : blocks[i].end])
    text_end = blocks[-1].end
    n_rest = text_end - blocks[i].start
    if n_rest <= min(_END_LINES if bare else _END_LINES // 4, (1 - _END_SHARE) * text_end) and not any(
        _CHAPTER.match(lines[block.start]) for block in blocks[i:]
    ):
        return len(blocks) - 1
    for k in range(i, len(blocks)):
        if blocks[k].end - blocks[i].start > _NOTE_LINES:
            break
        if any(_NOTE_END.match(line) for line in lines[blocks[k].start : blocks[k].end]):
            return k
    if not bare or i + 1 == len(blocks):
        return i
    for k in range(i + 1, len(blocks)):
        if blocks[k].end - blocks[i].start > _NOTE_LINES:
            break
        following = blocks[k + 1] if k + 1 < len(blocks) else None
        if following is None or following.gap >= _SECTION_GAP or _RULE.match(lines[following.start]):
            return k
    return i + 1


def drop_pages(document: Document) -> None:
    """Take page marks out: ``[Pg 12]`` anywhere, ``{12}`` at the end of a line."""
    for pattern in (_PAGE, _BRACED_PAGE):
        for i in range(len(document.lines) - 1, -1, -1):
            for match in reversed(list(pattern.finditer(document.lines[i]))):
                inside = match.start() > 0 and match.end() < len(document.lines[i])
                glue = " " if inside and match[0] != match[0].strip() else ""
                document.cut(PAGES, (i, match.start()), (i, match.end()), glue)


def _drop_brackets(document: Document, kind: str, opening: re.Pattern[str]) -> int:
    unclosed = 0
    i = len(document.lines) - 1
    while i >= 0:
        for match in reversed(list(opening.finditer(document.lines[i]))):
            end = _closing(document.lines, i, match.start())
            if end is None:
                unclosed += 1
            else:
                document.cut(kind, (i, match.start()), end)
        i -= 1
    return unclosed


def _closing(lines: list[str], line: int, column: int) -> tuple[int, int] | None:
    """Place behind the bracket that closes the one at ``column``; None where none does within reach."""
    depth = 0
    for i in range(line, min(line + _MOST_LINES, len(lines))):
        for k in range(column if i == line else 0, len(lines[i])):
            depth += {"[": 1, "]": -1}.get(lines[i][k], 0)
            if depth == 0:
                return i, k + 1
    return None
