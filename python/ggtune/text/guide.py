"""Text made ready for semantic-text-splitter, so that it cuts where a reader would.

It takes the longest run of line feeds for the best place to cut, which would leave titles and chapters' headings alone
in chunks, and every full stop before a capital for a sentence's end. Single characters are replaced by private ones,
so that all places in the text stay what they are:

- two line feeds are between paragraphs, however many there were;
- there is none behind a heading, or a line that ends in a colon, so that it is one with the sentence that follows;
- a full stop behind an abbreviation or an initial is none.
"""

from __future__ import annotations

import re

_FEED, _STOP = "\ue000", "\ue001"

_GAP = re.compile(r"\n{2,}")
_ABBREVIATION = re.compile(
    r"\b(?:(?:Messrs|Mr|Mrs|Ms|Mme|Mlle|Dr|Prof|Rev|Hon|Gen|Col|Maj|Capt|Lieut|Lt|Sgt|Gov|Sen|St|Mt|Ste|Fr|Hr|Sr|Sra"
    r"|Jr|vs|viz|cf|ca|Figs?|Eqs?|Vols?|Nos?|Nr|Bd|Chap|Ch|Sec|Art|pp?|eds?|e\.g|i\.e|z\.B|d\.h|[A-Z])\.(?=[ \n]))"
)
_COLON = re.compile(r":\n+(?=\S)")
_STOPS = re.compile(r"[.!?]")
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
    text = _COLON.sub(lambda match: f":{_FEED * (len(match[0]) - 1)}", text)
    out, at = [], 0
    for gap in _GAP.finditer(text):
        before, n = text[at : gap.start()], gap.end() - gap.start()
        if _is_heading(before):
            before = _STOPS.sub(_STOP, before.replace("\n", _FEED))
            out += [before, _FEED * n]
        else:
            out += [before, "\n\n", _FEED * (n - 2)]
        at = gap.end()
    return "".join([*out, text[at:]])


def unguided(text: str) -> str:
    """Undo :func:`guided`, also for a part of its result."""
    return text.replace(_FEED, "\n").replace(_STOP, ".")


def _is_heading(block: str) -> bool:
    block = block.strip().replace(_STOP, ".")
    if len(block) > _HEADING_CHARACTERS or block.count("\n") >= _HEADING_LINES or not re.search(r"[^\W_]", block):
        return False
    return not _SENTENCE_END.search(block) or _NUMBERED.match(block) is not None
