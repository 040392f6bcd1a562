"""Text made ready for semantic-text-splitter, so that it cuts where a reader would.

It takes the longest run of line feeds for the best place to cut, which would leave titles and chapters' headings alone
in chunks, and every full stop before a capital for a sentence's end. Single characters are replaced by private ones,
so that all places in the text stay what they are:

- two line feeds are between paragraphs, however many there were;
- behind a heading, or a line that ends in a colon, there is one: it stays with what follows;
- a full stop behind an abbreviation or an initial is none.
"""

from __future__ import annotations

import re

_FEED, _STOP = "\ue000", "\ue001"

_GAP = re.compile(r"\n(?:[ \t]*\n)+")
_ABBREVIATION = re.compile(
    r"\b(?:(?:Messrs|Mr|Mrs|Ms|Mme|Mlle|Dr|Prof|Rev|Hon|Gen|Col|Maj|Capt|Lieut|Lt|Sgt|Gov|Sen|St|Mt|Ste|Fr|Hr|Sr|Sra"
    r"|Jr|vs|viz|cf|ca|Figs?|Eqs?|Vols?|Nos?|Nr|Bd|Chap|Ch|Sec|Art|pp?|eds?|e\.g|i\.e|z\.B|d\.h|[A-Z])\.(?=[ \n]))"
)
_HEADING_CHARACTERS, _HEADING_LINES = 100, 3
_SENTENCE_END = re.compile(r"[.!?…;,][\"'”’»)\]_*]*$")
_NUMBERED = re.compile(
    r"[\W_]*(?:chapter|part|book|section|act|scene|letter|canto|kapitel|teil|buch|chapitre|partie|livre|cap[ií]tulo|[0-9]+"
    r"|[IVXLC]+)\b[^\n]{0,60}$",
    re.IGNORECASE,
)


def guided(text: str) -> str:
    """Return a text of the same length with the places to cut at made plain."""
    text = _ABBREVIATION.sub(lambda match: match[0][:-1] + _STOP, text)
    out, at = [], 0
    for gap in _GAP.finditer(text):
        before = text[at : gap.start()]
        kept = 1 if _leads_on(before) else 2
        n = gap.end() - gap.start()
        out += [before, "\n" * min(kept, n), _FEED * (n - min(kept, n))]
        at = gap.end()
    return "".join([*out, text[at:]])


def unguided(text: str) -> str:
    """Return nearly what the text was: good for measuring it."""
    return text.replace(_FEED, "\n").replace(_STOP, ".")


def _leads_on(block: str) -> bool:
    """Whether a block belongs to the next one: a heading, or what ends in a colon."""
    block = block.strip()
    if block.endswith(":"):
        return True
    if len(block) > _HEADING_CHARACTERS or block.count("\n") >= _HEADING_LINES or not re.search(r"[^\W_]", block):
        return False
    return not _SENTENCE_END.search(block) or _NUMBERED.match(block) is not None
