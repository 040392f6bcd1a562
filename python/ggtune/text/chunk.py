"""Texts cut into chunks for training, at chapters, paragraphs and sentences, by semantic-text-splitter."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggtune.errors import DataError, GgtuneError
from ggtune.extras import need
from ggtune.text.guide import guided, unguided
from ggtune.text.sources import Source

if TYPE_CHECKING:
    from semantic_text_splitter import TextSplitter

    from ggtune.data.tokenization import Tokenizer

CHARACTERS = 7000  # of a chunk, where nothing else is said

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Chunk:
    """A piece of a text. ``offset`` is the character of the text, from 0, at which it starts."""

    text: str
    source: str
    index: int  # from 0 within the source
    offset: int
    size: int  # as the chunker measures it: characters or tokens


class Chunker:
    """Cuts texts into chunks of at most ``capacity``, measured by ``measure``; neighbours share up to ``overlap``.

    A cut is made where the text allows the largest whole: between paragraphs, lines, sentences, words. Headings stay
    with what follows. White space at a chunk's ends is dropped.
    """

    def __init__(self, capacity: int, overlap: int = 0, measure: Callable[[str], int] = len) -> None:
        if capacity < 1:
            raise GgtuneError("A chunk has to have room for something.")
        if not 0 <= overlap < capacity:
            raise GgtuneError(f"The overlap ({overlap}) has to be less than a chunk ({capacity}).")
        self.capacity = capacity
        self.overlap = overlap
        self.measure = measure
        splitter: type[TextSplitter] = need("semantic_text_splitter", "text", "Cutting text into chunks").TextSplitter
        if measure is len:
            self._splitter = splitter(capacity, overlap)
        else:
            self._splitter = splitter.from_callback(lambda text: measure(unguided(text)), capacity, overlap)

    def chunks(self, pieces: Iterator[str], source: str) -> Iterator[Chunk]:
        """Yield the chunks of a text that comes in pieces; few of them are in memory at a time.

        The last chunk of what was read so far may end only because that does: it is cut again with what follows.
        """
        rest, offset = "", 0
        enough = _READ_BYTES
        index = covered = 0
        for piece, is_last in _with_last(pieces):
            rest += piece
            if len(rest) < enough and not is_last:
                continue
            spans = self._spans(rest)
            last = spans[-1][0] if spans and not is_last else len(rest)
            for start, end in spans if is_last else spans[:-1]:
                # one that was cut again may start within a paragraph, and end with it
                if offset + end > covered:
                    yield Chunk(rest[start:end], source, index, offset + start, self.measure(rest[start:end]))
                    index, covered = index + 1, offset + end
            rest, offset = rest[last:], offset + last
            enough = _READ_BYTES + len(rest)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each chunk, none of which is empty."""
        spans = []
        for start, chunk in self._splitter.chunk_indices(guided(text)):
            own = text[start : start + len(chunk)]
            start += len(own) - len(own.lstrip())
            if own.strip():
                spans.append((start, start + len(own.strip())))
        return spans


def _with_last(pieces: Iterator[str]) -> Iterator[tuple[str, bool]]:
    """Yield each piece and whether it is the last one; an empty one where there is none."""
    before = next(pieces, "")
    for piece in pieces:
        yield before, False
        before = piece
    yield before, True


def token_chunker(tokenizer: Tokenizer, tokens: int, overlap: int = 0) -> Chunker:
    """Return a chunker whose chunks fit a context of ``tokens``, with the BOS and EOS that training adds.

    Text that spells a special token is measured as text. Raises :class:`GgtuneError` for sizes that make no sense.
    """
    special = int(tokenizer.add_bos and tokenizer.bos_token >= 0) + 1
    if tokens <= special:
        raise GgtuneError(f"--tokens {tokens} leaves no room for text: {special} are the model's BOS and EOS.")
    return Chunker(tokens - special, overlap, lambda text: len(tokenizer.tokenize(text, parse_special=False)))


def read_pieces(source: Source) -> Iterator[str]:
    """Yield the text of a UTF-8 file piece by piece, a byte order mark dropped, line ends as line feeds.

    Raises :class:`DataError` for what is no UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    n_lines, held = 1, ""
    try:
        with source.path.open("rb") as file:
            while True:
                data = file.read(_READ_BYTES)
                try:
                    text = held + decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    line = n_lines + error.object[: error.start].count(b"\n")
                    raise DataError(
                        f"{source.path}: line {line} is not UTF-8. `ggtune text clean` reads and mends other encodings."
                    ) from error
                if "\0" in text:
                    raise DataError(f"{source.path}: holds a zero byte: this is not a text file.")
                held = "\r" if text.endswith("\r") and data else ""  # its line feed may be in the next piece
                text = text.removesuffix(held) if held else text
                n_lines += text.count("\n")
                yield text.replace("\r\n", "\n").replace("\r", "\n")
                if not data:
                    return
    except OSError as error:
        raise DataError(f"{source.path}: can't be read: {error.strerror or error}.") from error
