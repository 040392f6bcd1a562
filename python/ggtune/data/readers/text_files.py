"""Text files: ``<SFT>`` samples behind a marker, or one plain text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ggtune.data.conversation import Document
from ggtune.data.readers.decoding import read_text
from ggtune.data.readers.reader import Findings, Item, ReadOptions
from ggtune.data.readers.sft_samples import SAMPLE_START, split_samples


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
        for sample in split_samples(path, read_text(path, findings.notes), options.sample_start or SAMPLE_START):
            yield Document(sample.text, sample.line)


class TextReader:
    """All of the file as one text."""

    name = "text"
    suffixes = ()

    def claims(self, head: str, options: ReadOptions) -> bool:
        """What nothing else claims."""
        return True

    def read(self, path: Path, options: ReadOptions, findings: Findings) -> Iterator[Item]:
        """Give the text. Raises :class:`DataError`."""
        findings.unit = "window"
        yield Document(read_text(path, findings.notes), 1)
