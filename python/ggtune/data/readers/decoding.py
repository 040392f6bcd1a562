"""Bytes of data files to text: UTF-8, UTF-16, the code pages of other languages."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ggtune.data.readers.code_pages import find_code_page
from ggtune.errors import DataError
from ggtune.setting_texts import unknown_encoding

_CHUNK = 1 << 20
_SHOWN_LINES = 5
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def open_bytes(path: Path) -> BinaryIO:
    """Open a file. Raises :class:`DataError`."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}.") from error


def encoding_of(path: Path, notes: list[str], given: str = "") -> str:
    """Find a text file's encoding, and say where it is not UTF-8; ``given`` is what the user says that it is.

    Raises :class:`DataError` for a file that is empty, no text, in more than one encoding, or not in the given one.
    """
    with open_bytes(path) as file:
        head = file.read(_CHUNK)
        if not head:
            raise DataError(f"{path}: the file is empty.")
        file.seek(0)
        if given:
            return _given(path, file, given)
        encoding = next((name for bom, name in _BOMS if head.startswith(bom)), None)
        if encoding is None and (zeros := _zero_bytes(head)):
            encoding = zeros
        if encoding == "utf-16" or (encoding and encoding.startswith("utf-16-")):
            notes.append("read as UTF-16 text")
            return encoding
        if _decodes(file, "utf-8") is None:
            return "utf-8-sig"
        file.seek(0)
        return _code_page(path, file, notes)


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a text file whose line ends are as they stand (for ``csv``)."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def read_text(path: str | Path, notes: list[str] | None = None, encoding: str = "") -> str:
    """Read a text file, byte order marks dropped, line ends as line feeds. Raises :class:`DataError`."""
    path = Path(path)
    return "".join(pieces_of(path, encoding_of(path, notes if notes is not None else [], encoding)))


def pieces_of(path: Path, encoding: str) -> Iterator[str]:
    """Read a text file of this encoding piece by piece, as :func:`read_text` does."""
    n_lines, blank, line_start = 0, True, True
    try:
        with io.TextIOWrapper(open_bytes(path), encoding=encoding) as file:
            while piece := file.read(_CHUNK):
                if "\0" in piece:
                    line = n_lines + piece.count("\n", 0, piece.index("\0")) + 1
                    raise DataError(f"{path}: line {line} holds a zero byte: this is not a text file.")
                n_lines += piece.count("\n")
                if "\ufeff" in piece:  # of a file that was put behind another
                    piece = (piece[1:] if line_start and piece[0] == "\ufeff" else piece).replace("\n\ufeff", "\n")
                line_start = piece.endswith("\n")
                blank = blank and not piece.strip()
                yield piece
    except UnicodeDecodeError as error:
        raise not_whole(path, error) from error
    if blank:
        raise DataError(f"{path}: the file is empty.")


def head_of(path: Path, encoding: str) -> str:
    """First characters of a text file."""
    try:
        with open_text(path, encoding) as file:
            return file.read(1 << 16)
    except UnicodeDecodeError as error:
        raise not_whole(path, error) from error


def not_whole(path: Path, error: UnicodeDecodeError) -> DataError:
    """Error for a text that ends in the middle of a character."""
    return DataError(f"{path}: is not whole: it ends in the middle of a character ({error.reason}).")


def lines_of(path: Path, encoding: str) -> Iterator[str]:
    """Lines of a text file, without their ends and byte order marks."""
    with io.TextIOWrapper(open_bytes(path), encoding=encoding) as file:
        try:
            for line in file:
                yield line.rstrip("\n").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise not_whole(path, error) from error


def _zero_bytes(head: bytes) -> str | None:
    """UTF-16 without a mark: of latin text every other byte is zero."""
    sample = head[: 1 << 12]
    if sample[1::2].count(0) > len(sample) // 3 and not sample[::2].count(0):
        return "utf-16-le"
    if sample[::2].count(0) > len(sample) // 3 and not sample[1::2].count(0):
        return "utf-16-be"
    return None


def _decodes(file: BinaryIO, encoding: str) -> tuple[int, str] | None:
    """Decode all of a file; None where that can be done, else the line where it can't, and why."""
    decoder = codecs.getincrementaldecoder(encoding)()
    n_lines = 0
    try:
        while chunk := file.read(_CHUNK):
            n_lines += decoder.decode(chunk).count("\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        line = n_lines + 1 + error.object[: error.start].decode(encoding, "replace").count("\n")
        return line, f"byte 0x{error.object[error.start]:02x}: {error.reason}"
    return None


def _given(path: Path, file: BinaryIO, encoding: str) -> str:
    """Check that a file is in the encoding that the user names."""
    if unknown_encoding(encoding):
        raise DataError(f"There is no text encoding {encoding!r} (--encoding).")
    name = codecs.lookup(encoding).name
    if wrong := _decodes(file, name):
        raise DataError(f"{path}: line {wrong[0]} is not {encoding} text ({wrong[1]}): give another --encoding.")
    return "utf-8-sig" if name == "utf-8" else name


def _code_page(path: Path, file: BinaryIO, notes: list[str]) -> str:
    """Find the code page of a file in which no line with special characters is UTF-8; raises for a mixture."""
    utf8, n_other = 0, 0
    other: list[int] = []
    sample: list[bytes] = []
    first_byte, left = b"", _CHUNK
    for number, line in enumerate(file, start=1):
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
            utf8 += 1
        except UnicodeDecodeError as error:
            n_other += 1
            if len(other) < _SHOWN_LINES:
                other.append(number)
            first_byte = first_byte or line[error.start : error.start + 1]
            if left > 0:
                sample.append(line)
                left -= len(line)
    shown = ", ".join(map(str, other)) + (f", ... ({n_other} in all)" if n_other > _SHOWN_LINES else "")
    where = f"{path}: line{'s' if n_other > 1 else ''} {shown}"
    if utf8:
        raise DataError(
            f"{where} {'are' if n_other > 1 else 'is'} not UTF-8, though {utf8} other lines are: the file is in "
            "more than one encoding. Save it as UTF-8, or name its --encoding."
        )
    for encoding, title in find_code_page(b"".join(sample)):
        file.seek(0)
        if _decodes(file, encoding) is None:
            notes.append(
                f"not UTF-8: read as {title} (special characters first in line {other[0]}); look at a preview, and "
                "name another by --encoding if it is wrong"
            )
            return encoding
    raise DataError(
        f"{path}: line {other[0]} is not UTF-8 (byte 0x{first_byte.hex()}), nor is the file text in another encoding "
        "that is known here. Save it as UTF-8, or name its --encoding."
    )
