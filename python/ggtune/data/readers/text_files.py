"""Text files: ``<SFT>`` samples behind a marker, or one plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ggtune.data.conversation import Document
from ggtune.data.readers.decoding import encoding_of, pieces_of
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.sft_samples import SAMPLE_START, samples_of

# characters of a plain text that are tokenized at once: as many texts as there are threads are in memory
_PIECE = 1 << 20
_WORD_END = re.compile(r"\w(?= \w)")


class SftReader:
    """Rendered samples, each behind a marker; numbers count lines."""

    name = "sft"
    suffixes = ()

    def claims(self, head: str, options: ReadOptions) -> bool:
        """By the marker, or because one was given."""
        return bool(options.sample_start) or (options.sample_start is None and SAMPLE_START in head)

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the texts behind the markers. Raises :class:`DataError`."""
        findings.unit, findings.rendered = "line", True
        pieces = pieces_of(path, encoding_of(path, findings.notes, options.encoding))
        for sample in samples_of(path, pieces, options.sample_start or SAMPLE_START):
            yield Document(sample.text, sample.line)


class TextReader:
    """All of the file as one text."""

    name = "text"
    suffixes = ()

    def claims(self, head: str, options: ReadOptions) -> bool:
        """What nothing else claims."""
        return True

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the text, a long one in pieces: the file may be larger than memory. Raises :class:`DataError`."""
        findings.unit = "window"
        before = ""
        for text, goes_on in _cut(pieces_of(path, encoding_of(path, findings.notes, options.encoding))):
            yield Document(text, 1, before=before, goes_on=goes_on)
            before = text[-1:]


def _cut(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a text where no token spans the cut: between two words, in front of the blank. Also says whether it goes on.

    A text without such a place is cut at a line's end or, as a last resort, anywhere.
    """
    left = ""
    for text in texts:
        left += text
        while len(left) > _PIECE:
            at = max((m.end() for m in _WORD_END.finditer(left, _PIECE - _PIECE // 4, _PIECE)), default=0)
            at = at or left.rfind("\n", 0, _PIECE) + 1 or _PIECE
            yield left[:at], True
            left = left[at:]
    yield left, False
