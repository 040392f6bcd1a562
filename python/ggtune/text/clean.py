"""Books and notes made fit for training: what is not the text taken out, damage mended, and all of it said."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ggtune.text import apparatus, contents, gutenberg
from ggtune.text.document import Document, Removed
from ggtune.text.encoding import Mender
from ggtune.text.paragraphs import unwrap
from ggtune.text.whitespace import normalise_whitespace

KINDS = {
    "gutenberg": "Project Gutenberg's header, footer, licence and credits",
    "encoding": "mojibake, HTML entities, ligatures and control characters (ftfy)",
    "illustrations": "marks such as [Illustration: ...]",
    "notes": "transcribers' notes",
    "contents": "tables of contents and lists of illustrations",
    "pages": "page marks such as [Pg 12]",
    "wraps": "line breaks inside of paragraphs",
    "hyphens": "hyphens of words that a line's end divides",
    "whitespace": "superfluous and unusual white space",
}
"""What is taken out or changed, each of which can be kept."""


@dataclass(frozen=True)
class Cleaned:
    """A cleaned text and what it took."""

    text: str  # ends with a line feed; "" where nothing is left
    removed: tuple[Removed, ...]  # passages, in the order of the file
    mended_lines: int  # by ftfy
    joined_lines: int  # line breaks that went
    joined_words: int  # hyphens that went with them
    spaces: int  # characters of white space that went or were exchanged
    doubts: tuple[str, ...]  # what a person should look at

    def amounts(self) -> dict[str, tuple[int, int]]:
        """Return the lines and characters that were taken out of each kind of passage."""
        found: dict[str, tuple[int, int]] = {}
        for passage in self.removed:
            lines, characters = found.get(passage.kind, (0, 0))
            found[passage.kind] = (lines + passage.n_lines, characters + len(passage.text))
        return found


def clean_text(text: str, *, keep: Collection[str] = ()) -> Cleaned:
    """Clean a text whose line ends are line feeds. ``keep`` are keys of :data:`KINDS`."""
    mended = 0
    if "encoding" not in keep:
        mender = Mender()
        lines = text.split("\n")
        new = [mender.mend(line) for line in lines]
        mended = sum(a != b for a, b in zip(lines, new, strict=True))
        text = "\n".join(new)
    document = Document(text)
    doubts: list[str] = []
    if "gutenberg" not in keep:
        doubts += gutenberg.strip_gutenberg(document)
    unclosed = 0
    if "illustrations" not in keep:
        unclosed += apparatus.drop_illustrations(document)
    if "notes" not in keep:
        unclosed += apparatus.drop_notes(document)
    if unclosed:
        doubts.append(f"has brackets of illustrations or notes that are not closed nearby, and were left: {unclosed}.")
    if "contents" not in keep:
        contents.drop_contents(document)
    if "pages" not in keep:
        apparatus.drop_pages(document)
    joined_lines = joined_words = spaces = 0
    if "wraps" not in keep:
        joined_lines, joined_words = unwrap(document, hyphens="hyphens" not in keep)
    if "whitespace" not in keep:
        spaces = normalise_whitespace(document)
    out = document.text(0, len(document.lines)).strip("\n")
    return Cleaned(
        text=f"{out}\n" if out.strip() else "",
        removed=tuple(sorted(document.removed, key=lambda passage: passage.line)),
        mended_lines=mended,
        joined_lines=joined_lines,
        joined_words=joined_words,
        spaces=spaces,
        doubts=tuple(doubts),
    )
