"""``<SFT>`` text: rendered samples one after another, each behind a marker.

The format of llama.cpp's former ``finetune`` (``--sample-start``): what stands before the first marker is no sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggtune.errors import DataError

SAMPLE_START = "<SFT>"


@dataclass(frozen=True)
class TextSample:
    """Text behind one marker, without surrounding white space; ``line`` is where the marker stands, from 1."""

    text: str
    line: int


def split_samples(path: str | Path, text: str, sample_start: str = SAMPLE_START) -> list[TextSample]:
    """Split a text at its markers. Raises :class:`DataError` where there is none, or nothing behind any of them."""
    before, *pieces = text.split(sample_start)
    if not pieces:
        raise DataError(
            f"{path}: the marker {sample_start!r} does not occur. Name the one that starts each sample with "
            "--sample-start, or give --sample-start '' for plain text."
        )
    samples = []
    line = 1 + before.count("\n")
    for piece in pieces:
        if piece.strip():
            samples.append(TextSample(piece.strip(), line))
        line += sample_start.count("\n") + piece.count("\n")
    if not samples:
        raise DataError(f"{path}: no text behind any {sample_start!r}.")
    return samples
