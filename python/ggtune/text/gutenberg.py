"""What Project Gutenberg puts around a book: headers, licences, credits, in the forms that they had since 1990.

The markers are described at https://www.gutenberg.org/help/faq.html and in the files themselves. Both those of today
(``*** START OF THE PROJECT GUTENBERG EBOOK ... ***``) and the "small print" of the years before 2004 are lines that
switch between the book and what is around it, so that files with several books, and licences in any place, come out
right.
"""

from __future__ import annotations

import re

from ggtune.text.document import Document

KIND = "gutenberg"

_I = re.IGNORECASE
_BOOK_STARTS = re.compile(
    r"\s*\*{1,3}\s*START\s*(?:\*\*\s*)?OF\s+(?:THE|THIS)\s+(?:COPYRIGHTED\s+)?PROJECT\s+GUTENBERG"
    r"|\s*\*{1,3}\s*END\W{1,3}(?:OF\s+)?THE\s+SMALL\s+PRINT"
    r"|.*\*END\*\s*$"  # the last line of a small print that was wrapped anew
    r"|\s*\*{1,3}\s*END\s*:\s*FULL\s+LICENSE",
    _I,
)
_BOOK_ENDS = re.compile(
    r"\s*\*{1,3}\s*END\s+OF\s+(?:THE|THIS)\s+(?:COPYRIGHTED\s+)?PROJECT\s+GUTENBERG"
    r"|\s*\*{1,3}\s*START\W{1,4}(?:OF\s+)?THE\s+SMALL\s+PRINT"
    r"|\s*\*{1,3}\s*START\s*:\s*FULL\s+LICENSE",
    _I,
)
# Lines that could stand in a book, too: they end it only where little but a licence follows.
_SOFT_ENDS = re.compile(
    r"\s*\*{0,3}\s*(?:(?:This\s+is\s+)?(?:the\s+)?End\s+of\s+(?:the\s+|this\s+)?Project\s+Gutenberg"
    r"|Ende\s+dieses\s+Proje[ck]ts?\s+Gutenberg|Fin\s+d[eu]\s+(?:ce\s+)?(?:livre\s+)?Projec?t\s+Gutenberg)",
    _I,
)
_PREAMBLE = re.compile(r"\W*(?:The\s+|A\s+|This\s+)?(?:is\s+the\s+)?Project\s+Gutenberg", _I)
_CREDITS = re.compile(
    r"[\[*\s]*(?:"
    r"(?:This\s+|The\s+)?(?:e-?text|e-?book|electronic\s+(?:text|edition)|Project\s+Gutenberg\s+e-?(?:text|book))\s+"
    r"(?:was\s+)?(?:first\s+)?(?:prepared|produced|transcribed|scanned|created|typed|proofed)\b"
    r"|(?:Produced|Prepared|Proofed|Scanned|Typed|Scanned\s+and\s+proofed|Transcribed)\s+(?:by|from)\b"
    r"|(?:HTML|PDF|EPUB)\s+version\s+by\b"
    r"|This\s+file\s+was\s+produced\s+from\b"
    r"|(?:The\s+)?Project\s+Gutenberg(?:'s|’s)?\s+(?:e-?(?:text|book)|edition)\b"
    r"|Note:\s+(?:Images\s+of\s+the\s+original|Project\s+Gutenberg\s+(?:also\s+)?has|The\s+original\s+images)"
    r"|Images\s+of\s+the\s+original\s+pages\s+are\s+available"
    r"|[^\n]{0,200}\bDistributed\s+Proofread"
    r")",
    _I,
)
_SHAKESPEARE = re.compile(r"\s*<<\s*THIS\s+ELECTRONIC\s+VERSION", _I)

_LICENCE_LINES = 600  # the longest licence has 400
_CREDIT_BLOCKS = 8  # how far into the book a credit may stand
_PREAMBLE_LINES = 30
_MARKER_LINES = 4  # a long title wraps its marker


def strip_gutenberg(document: Document) -> list[str]:
    """Take headers, footers, licences and credits out. Returns doubts: a Gutenberg text without a known marker."""
    _drop_licence_blocks(document)
    books = _books(document)
    if books is None:
        return _doubts(document)
    bounds = [0, *(bound for book in books for bound in book), len(document.lines)]
    outside = [(bounds[i], bounds[i + 1]) for i in range(0, len(bounds), 2)]
    outside += [credit for start, end in books for credit in _credits(document, start, end)]
    document.drop(KIND, outside)
    return []


def _books(document: Document) -> list[tuple[int, int]] | None:
    """Ranges of lines that are books; None where no marker is."""
    markers = _markers(document)
    if not markers:
        return None
    books: list[tuple[int, int]] = []
    first_is_start = markers[0][2]
    begun = None if first_is_start or _is_preamble(document, 0) else 0
    for start, end, is_start in markers:
        if is_start:
            # a second start close behind the first: an old header inside of a new one
            begun = end if begun is None or start - begun < _LICENCE_LINES else begun
        elif begun is not None:
            if start - begun >= _LICENCE_LINES or not _is_preamble(document, begun):  # an old header's first part
                books.append((begun, start))
            begun = None
    if begun is not None:
        books.append((begun, len(document.lines)))
    return [book for book in books if document.text(*book).strip()]


def _markers(document: Document) -> list[tuple[int, int, bool]]:
    """(line, line behind it, whether a book starts here)."""
    found = []
    lines = document.lines
    for i, line in enumerate(lines):
        if "END" not in line.upper() and "START" not in line.upper() and "FIN" not in line.upper():
            continue
        if _BOOK_ENDS.match(line):
            found.append((i, _marker_end(lines, i), False))
        elif _BOOK_STARTS.match(line):
            found.append((i, _marker_end(lines, i), True))
        elif _SOFT_ENDS.match(line) and _licence_follows(lines, i):
            found.append((i, i + 1, False))
    return found


def _marker_end(lines: list[str], i: int) -> int:
    """A marker goes on to the line that closes it with asterisks, where its own does not."""
    if lines[i].rstrip().endswith("*") and lines[i].strip(" *"):
        return i + 1
    for k in range(i + 1, min(i + _MARKER_LINES, len(lines))):
        if not lines[k].strip():
            break
        if lines[k].rstrip().endswith("*"):
            return k + 1
    return i + 1


def _licence_follows(lines: list[str], i: int) -> bool:
    rest = [k for k in range(i + 1, len(lines)) if lines[k].strip()]
    if not rest or len(rest) < 10:
        return True
    near = "\n".join(lines[i + 1 : i + 40])
    return _BOOK_ENDS.search(near) is not None or (len(rest) < _LICENCE_LINES and "Gutenberg" in near)


def _is_preamble(document: Document, start: int) -> bool:
    blocks = document.blocks(start, min(len(document.lines), start + _PREAMBLE_LINES))
    return any(_PREAMBLE.match(document.lines[block.start]) for block in blocks)


def _credits(document: Document, start: int, end: int) -> list[tuple[int, int]]:
    blocks = document.blocks(start, end)[:_CREDIT_BLOCKS]
    return [(block.start, block.end) for block in blocks if _CREDITS.match(document.text(block.start, block.end))]


def _drop_licence_blocks(document: Document) -> None:
    """The notice that stood between the plays of an early Shakespeare."""
    found = []
    for block in document.blocks():
        if _SHAKESPEARE.match(document.lines[block.start]) and ">>" in document.lines[block.end - 1]:
            found.append((block.start, block.end))
    document.drop(KIND, found)


def _doubts(document: Document) -> list[str]:
    if not _is_preamble(document, 0):
        return []
    return [
        "names Project Gutenberg at its start, but has none of the known markers: its header and licence were left. "
        "Look at its first and last lines."
    ]
