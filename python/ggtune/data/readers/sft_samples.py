"""``<SFT>`` text: rendered samples one after another, each behind a marker.

The format of llama.cpp's former ``finetune`` (``--sample-start``): what stands before the first marker is no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
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
    return list(samples_of(path, [text], sample_start))


def samples_of(path: str | Path, pieces: Iterable[str], sample_start: str) -> Iterator[TextSample]:
    """Split the pieces of a text at its markers, as :func:`split_samples` does; one sample is in memory at a time."""
    left, line, n_parts, n_samples = "", 1, 0, 0
    for piece in chain(pieces, [None]):
        *whole, left = (left + (piece or "")).split(sample_start)
        if piece is None:
            whole, left = [*whole, left], ""
        for text in whole:
            if n_parts and text.strip():
                n_samples += 1
                yield TextSample(text.strip(), line)
            line += text.count("\n") + (sample_start.count("\n") if n_parts else 0)
            n_parts += 1
    if n_parts < 2:
        raise DataError(
            f"{path}: the marker {sample_start!r} does not occur. Name the one that starts each sample with "
            "--sample-start, or give --sample-start '' for plain text."
        )
    if not n_samples:
        raise DataError(f"{path}: no text behind any {sample_start!r}.")
