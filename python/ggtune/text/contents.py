"""Tables of contents and lists of illustrations: headings with nothing but entries below them.

They end where running text begins; the headings right before that which repeat an entry belong to the text.
"""

from __future__ import annotations

import re

from ggtune.text.document import Block, Document

KIND = "contents"

_I = re.IGNORECASE
_HEADING = re.compile(
    r"[\s_*=#]*(?:(?:the\s+)?(?:table\s+of\s+)?contents(?:\s+of\s+(?:the\s+)?(?:volume|vol\.?|book|part)\s*\w*)?"
    r"|(?:list\s+of\s+)?illustrations|list\s+of\s+(?:figures|plates|tables|maps|chapters)|index\s+of\s+chapters"
    r"|inhalt(?:s?\s*-?verzeichnis|s?[uü]bersicht)?|abbildungsverzeichnis|table\s+des\s+(?:mati[eè]res|chapitres)"
    r"|sommaire|[ií]ndice(?:\s+(?:general|dei\s+capitoli))?|inhoud(?:sopgave)?|sis[aä]llys(?:luettelo)?|spis\s+tre[sś]ci"
    r"|inneh[aå]ll|indhold|innhold)[\s.:_*=—-]*$",
    _I,
)
_PAGE_HEADING = re.compile(r"\s*(?:chapter|chap\.?|kapitel|chapitre)?\s*(?:page|pages|seite|p\.|no\.)\s*$", _I)
_NUMBERED = re.compile(
    r"[\s_*]*(?:(?:chapter|chap\.?|part|book|volume|vol\.?|section|sect?\.?|act|scene|letter|lecture|canto|appendix|no\.?"
    r"|kapitel|teil|buch|chapitre|partie|livre|cap[ií]tulo|parte|libro|hoofdstuk|figure|fig\.?|plate|table)\s+"
    r"(?:the\s+)?[\w-]+|[0-9]{1,4}[.):]|[0-9]{1,2}(?:\.[0-9]+)+\.?|[IVXLC]{1,8}[.):—-]|[IVXLC]{1,8}\s{2,})",
    _I,
)
_PAGE_END = re.compile(r"(?<![\s.·…_])(?:[\s.·…_]|,\s)+(?:[0-9]{1,4}|[ivxlc]{1,7})[_*\s]*$")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?:\s|$)")

_FEWEST_ENTRIES = 2
_SUMMARY_LINES = 14  # of an entry that tells what a chapter is about
_MOST_LINES = 1500
_NUMBER_WORDS = 2  # "CHAPTER I", the line above its title
_TITLE_BLOCKS = 5  # headings that may stand between the contents and the first running text


def drop_contents(document: Document) -> None:
    """Take each table of contents out, with its heading."""
    blocks = document.blocks()
    ranges: list[tuple[int, int]] = []
    i = named_from = 0  # where the tables start whose entries may name the text's first title
    while i < len(blocks):
        if not ranges or ranges[-1][1] != blocks[i - 1].end:
            named_from = i
        end = None
        if _HEADING.match(document.lines[blocks[i].start]):
            end = _contents_end(document.lines, blocks, i, named_from)
        if end is None:
            i += 1
            continue
        ranges.append((blocks[i].start, blocks[end - 1].end))
        i = end
    document.drop(KIND, ranges)


def _contents_end(lines: list[str], blocks: list[Block], i: int, named_from: int) -> int | None:
    """Index of the first block behind the contents that start with block ``i``; None where these are none."""
    if blocks[i].end - blocks[i].start > 1 and _is_text(lines[blocks[i].start + 1 : blocks[i].end]):
        return None
    text = i + 1
    while text < len(blocks) and not _is_text(lines[blocks[text].start : blocks[text].end]):
        if _HEADING.match(lines[blocks[text].start]):  # a list of illustrations behind the contents
            break
        text += 1
    if blocks[text - 1].end - blocks[i].start > _MOST_LINES:
        return None
    listed = text == len(blocks) or _HEADING.match(lines[blocks[text].start]) is not None
    end = text if listed else _body_start(lines, blocks, i, text, named_from)
    entries = [line for line in lines[blocks[i].start + 1 : blocks[end - 1].end] if line.strip()]
    marked = sum(bool(_NUMBERED.match(line) or _PAGE_END.search(line)) for line in entries)
    return end if len(entries) >= _FEWEST_ENTRIES and (marked >= _FEWEST_ENTRIES or end < text) else None


def _body_start(lines: list[str], blocks: list[Block], i: int, text: int, named_from: int) -> int:
    """Index of the first block of the text: its title, which the contents have named, or the text itself."""
    names = [
        (k, name)
        for k in range(named_from, text)
        for line in lines[blocks[k].start : blocks[k].end]
        if (name := _name(line)) and not _PAGE_HEADING.match(line)
    ]
    # the title of the first entry may stand far before the first running text: verse, a list of persons
    for first_at, first in [(at, name) for at, name in names if at >= i][1:2]:
        for k in range(first_at + 1, text):
            title = lines[blocks[k].start]
            if _name(title) and _names(first, _name(title)) and not _PAGE_END.search(title):
                return k
    for k in sorted({at for at, _ in names if at > i and at >= text - _TITLE_BLOCKS}):
        titles = [name for at, name in names if at == k][:2]
        if len(titles[0].split()) > _NUMBER_WORDS:
            titles = titles[:1]
        if any(at < k and _names(name, title) for title in titles for at, name in names):
            return k
    # a title that the contents do not name: what stands last and looks like no entry
    last = text
    while last - 1 > i and text - last < _TITLE_BLOCKS and not _has_entry(lines, blocks[last - 1]):
        last -= 1
    return last if last - 1 > i else text


def _has_entry(lines: list[str], block: Block) -> bool:
    own = lines[block.start : block.end]
    return len(own) > 3 or any(_NUMBERED.match(line) or _PAGE_END.search(line) for line in own)


def _name(line: str) -> str:
    """A heading's words, without page, dots and case."""
    return " ".join(re.findall(r"\w+", _PAGE_END.sub("", line).lower()))


def _names(entry: str, title: str) -> bool:
    return entry == title or entry.startswith(title + " ") or entry.endswith(" " + title)


def _is_text(own: list[str]) -> bool:
    """Whether these lines are running text and no entries."""
    joined = " ".join(line.strip() for line in own)
    if _PAGE_HEADING.match(own[0]) or sum(bool(_PAGE_END.search(line)) for line in own) * 2 >= len(own):
        return False
    if _NUMBERED.match(own[0]) and len(own) <= _SUMMARY_LINES and len(joined) < 900:
        return False
    dashes = len(re.findall(r"--|—|\s[–-]\s", joined))
    sentences = len(_SENTENCE_END.findall(joined))
    return len(joined) >= 120 and sentences >= 1 and dashes <= max(2, 2 * sentences) and _mostly_small(joined)


def _mostly_small(text: str) -> bool:
    """Most words of a sentence start with small letters (where the script has them), those of a title do not."""
    words = [word for word in re.findall(r"\w+", text) if word[0].isalpha()]
    cased = [word for word in words if word[0].lower() != word[0].upper()]
    return not cased or sum(word[0].islower() for word in cased) > 0.5 * len(cased)
