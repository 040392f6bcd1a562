"""Bytes of text files to characters, whatever wrote them, and damage of earlier conversions mended by ftfy."""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

from ggtune.errors import DataError
from ggtune.extras import need

if TYPE_CHECKING:
    import ftfy

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_TEXT = (
    (b"%PDF-", "a PDF file. Convert it to text first (pdftotext)"),
    (b"PK\x03\x04", "a ZIP, EPUB or office file. Unpack it, or save it as plain text, first"),
    (b"\x1f\x8b", "compressed by gzip. Unpack it first"),
    (b"{\\rtf", "a rich text file. Save it as plain text first"),
    (b"GGUF", "a model file"),
)
_HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)
# what the head of a Project Gutenberg file says of itself
_DECLARED = re.compile(rb"Character set encoding:\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_HEAD_BYTES = 1 << 13
_BAD_UTF8_SHARE = 0.1  # up to this share of its characters beyond ASCII may be wrong in a UTF-8 text


def looks_like_html(data: bytes) -> bool:
    """Whether the first bytes are those of a web page."""
    return _HTML.match(data[:_HEAD_BYTES]) is not None


def decode(data: bytes, name: str, *, encoding: str | None = None) -> tuple[str, str]:
    """Return the text and the encoding that it was read by, a byte order mark dropped and line ends as line feeds.

    Without ``encoding``: a byte order mark, UTF-16 without one, UTF-8, what the head of a Project Gutenberg file
    declares, UTF-8 with a few bytes of Windows-1252 in it ("utf-8 with cp1252"), Windows-1252. Raises
    :class:`DataError` for what is no text, for bytes that ``encoding`` does not have, and for an empty file.
    """
    for start, what in _NO_TEXT:
        if data.startswith(start):
            raise DataError(f"{name}: is {what}.")
    if looks_like_html(data):
        raise DataError(f"{name}: is a web page. Save it as plain text first.")
    text, used = _decode(data, name, encoding)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}: line {line} holds a zero byte: this is not a text file.")
    if not text.strip():
        raise DataError(f"{name}: the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), used


def _decode(data: bytes, name: str, encoding: str | None) -> tuple[str, str]:
    if encoding is not None:
        try:
            return data.decode(encoding).removeprefix("\ufeff"), encoding
        except LookupError:
            raise DataError(f"There is no encoding {encoding!r}.") from None
        except UnicodeError as error:
            raise DataError(f"{name}: is not {encoding}: {error}.") from error
    for mark, used in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(used), used.removesuffix("-sig")
            except UnicodeError as error:
                if used != "utf-8-sig":
                    raise DataError(f"{name}: starts as {used} does, but is not: {error}.") from error
                data = data.removeprefix(mark)
    if unmarked := _unmarked_utf16(data):
        return data.decode(unmarked, "replace"), unmarked
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        pass
    declared = _declared(data)
    if declared:
        try:
            return data.decode(declared), declared
        except UnicodeError:
            pass
    text = data.decode("utf-8", "surrogateescape")
    beyond = sum(character > "\x7f" for character in text)
    wrong = sum("\udc80" <= character <= "\udcff" for character in text)
    if wrong <= _BAD_UTF8_SHARE * beyond:
        return re.sub("[\udc80-\udcff]", lambda match: _cp1252(ord(match[0]) & 0xFF), text), "utf-8 with cp1252"
    return "".join(map(_cp1252, data)) if _unassigned(data) else data.decode("cp1252"), "cp1252"


def _unmarked_utf16(data: bytes) -> str | None:
    """Every second byte of European UTF-16 is zero, and no other."""
    head = data[:_HEAD_BYTES]
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(data) % 2 or len(head) < 8:
        return None
    if odd > 0.3 * len(head) / 2 and even == 0:
        return "utf-16-le"
    return "utf-16-be" if even > 0.3 * len(head) / 2 and odd == 0 else None


def _declared(data: bytes) -> str | None:
    match = _DECLARED.search(data[:_HEAD_BYTES])
    if match is None:
        return None
    try:
        name = codecs.lookup(match[1].decode("ascii")).name
    except LookupError:
        return None
    # files that declare Latin-1 have Windows' quotes in its unused places; UTF-8 and ASCII were tried
    return {"iso8859-1": "cp1252", "utf-8": None, "ascii": None}.get(name, name)


def _unassigned(data: bytes) -> bool:
    return any(byte in data for byte in b"\x81\x8d\x8f\x90\x9d")


def _cp1252(byte: int) -> str:
    """A byte that Windows-1252 leaves unassigned is the control character of its number, which ftfy drops."""
    try:
        return bytes((byte,)).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


class Mender:
    """ftfy on single lines: mojibake, HTML entities, ligatures and control characters, to composed Unicode (NFC).

    Curly quotes stay, and so do wide characters, which are the punctuation of Chinese and Japanese.
    """

    def __init__(self) -> None:
        module = need("ftfy", "text", "Mending encodings")
        self._fix_text = module.fix_text
        self._config: ftfy.TextFixerConfig = module.TextFixerConfig(
            uncurl_quotes=False, fix_character_width=False, explain=False
        )

    def mend(self, line: str) -> str:
        """Return the line as it was meant; it may have become several."""
        return line if line.isascii() and "&" not in line and line.isprintable() else self._run(line)

    def _run(self, line: str) -> str:
        return str(self._fix_text(line, self._config)).removesuffix("\n")
