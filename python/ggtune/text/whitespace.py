"""White space made plain: one kind of space, no trailing one, single ones in running text, two blank lines at most."""

from __future__ import annotations

import re

from ggtune.text.document import Document
from ggtune.text.paragraphs import is_verbatim

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
_RUN = re.compile(r"(?<=\S)[ \t]+")
_MOST_BLANK = 2  # a chapter's start keeps more distance than a paragraph's


def normalise_whitespace(document: Document) -> int:
    """Change the lines in place. Returns by how many characters the text became shorter or different."""
    before = document.text(0, len(document.lines))
    lines = [_INVISIBLE.sub("", _SPACES.sub(" ", line)).rstrip() for line in document.lines]
    document.lines = lines
    for block in document.blocks():
        if not is_verbatim(lines[block.start : block.end]):
            lines[block.start : block.end] = [_RUN.sub(" ", line) for line in lines[block.start : block.end]]
    kept: list[int] = []
    n_blank = _MOST_BLANK  # none at the start
    for i, line in enumerate(lines):
        n_blank = 0 if line else n_blank + 1
        if n_blank <= _MOST_BLANK:
            kept.append(i)
    while kept and not lines[kept[-1]]:
        kept.pop()
    document.lines = [lines[i] for i in kept]
    document.numbers = [document.numbers[i] for i in kept]
    exchanged = len(_SPACES.findall(before))
    return exchanged + len(before) - len(document.text(0, len(document.lines)))
