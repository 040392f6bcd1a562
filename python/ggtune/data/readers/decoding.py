"""Bytes of data files to text: UTF-8, UTF-16 and the Windows code page of western Europe."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from ggtune.errors import DataError

_CHUNK = 1 << 20
_SHOWN_LINES = 5
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def open_bytes(path: Path) -> BinaryIO:
    """Open a file. Raises :class:`DataError`."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}.") from error


def encoding_of(path: Path, notes: list[str]) -> str:
    """Find a text file's encoding, and say where it is not UTF-8.

    Raises :class:`DataError` for a file that is empty, no text, or in more than one encoding.
    """
    with open_bytes(path) as file:
        head = file.read(_CHUNK)
        if not head:
            raise DataError(f"{path}: the file is empty.")
        encoding = next((name for bom, name in _BOMS if head.startswith(bom)), None)
        if encoding is None and (zeros := _zero_bytes(head)):
            encoding = zeros
        if encoding == "utf-16" or (encoding and encoding.startswith("utf-16-")):
            notes.append("read as UTF-16 text")
            return encoding
        file.seek(0)
        if _is_utf8(file):
            return "utf-8-sig"
        file.seek(0)
        return _code_page(path, file, notes)


def open_text(path: Path, encoding: str) -> TextIO:
    """Open a text file whose line ends are as they stand (for ``csv``)."""
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def read_text(path: str | Path, notes: list[str] | None = None) -> str:
    """Read a text file, a byte order mark dropped, line ends as line feeds. Raises :class:`DataError`."""
    path = Path(path)
    encoding = encoding_of(path, notes if notes is not None else [])
    try:
        with open_text(path, encoding) as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise not_whole(path, error) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}: line {line} holds a zero byte: this is not a text file.")
    if not text.strip():
        raise DataError(f"{path}: the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
    """Lines of a text file, without their ends."""
    with io.TextIOWrapper(open_bytes(path), encoding=encoding) as file:
        try:
            for line in file:
                yield line.rstrip("\n")
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


def _is_utf8(file: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _code_page(path: Path, file: BinaryIO, notes: list[str]) -> str:
    """``cp1252`` where no line with special characters is UTF-8; raises for a mixture."""
    utf8, other, first_byte = 0, [], (0, b"")
    for number, line in enumerate(file, start=1):
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
            utf8 += 1
        except UnicodeDecodeError as error:
            other.append(number)
            first_byte = first_byte if first_byte[0] else (number, line[error.start : error.start + 1])
    shown = ", ".join(map(str, other[:_SHOWN_LINES])) + (
        f", ... ({len(other)} in all)" if len(other) > _SHOWN_LINES else ""
    )
    where = f"{path}: line{'s' if len(other) > 1 else ''} {shown}"
    if utf8:
        raise DataError(
            f"{where} {'are' if len(other) > 1 else 'is'} not UTF-8, though {utf8} other lines are: the file is in "
            "more than one encoding. Save it as UTF-8."
        )
    file.seek(0)
    try:
        text = file.read().decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    if any(ord(character) < 32 and character not in "\t\n\r\f" for character in text):
        raise DataError(
            f"{path}: line {first_byte[0]} is not UTF-8 (byte 0x{first_byte[1].hex()}), nor is the file text in "
            "another encoding that is known here. Save it as UTF-8."
        )
    notes.append(
        f"not UTF-8: read as Windows-1252 (special characters first in line {first_byte[0]}); look at a preview"
    )
    return "cp1252"
