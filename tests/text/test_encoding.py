import codecs

import pytest

from ggtune.errors import DataError
from ggtune.text.encoding import Mender, decode

TEXT = "Die Müllerin sagte: „Der Brunnen ist kaputt“ – und ging.\nÜber Nacht fror er zu; das kostete 5 €.\n"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8"),
        (TEXT.encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16"),
        (TEXT.encode("utf-32"), "utf-32"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
        (TEXT.encode("cp1252"), "cp1252"),
        (TEXT.replace("\n", "\r\n").encode(), "utf-8"),
        (TEXT.replace("\n", "\r").encode(), "utf-8"),
    ],
)
def test_encodings_are_found_out(data: bytes, name: str) -> None:
    assert decode(data, "a.txt") == (TEXT, name)


def test_what_the_head_declares_counts() -> None:
    text = "Character set encoding: ISO-8859-2\n\nPomněnky a řeka\n"
    assert decode(text.encode("iso8859-2"), "a.txt") == (text, "iso8859-2")


def test_a_few_bytes_of_windows_in_utf8() -> None:
    assert decode((TEXT * 9).encode() + b"caf\xe9 \x93so\x94\n", "a.txt") == (
        TEXT * 9 + "café “so”\n",
        "utf-8 with cp1252",
    )


def test_an_encoding_that_is_named() -> None:
    assert decode("дом\n".encode("koi8-r"), "a.txt", encoding="koi8-r") == ("дом\n", "koi8-r")
    with pytest.raises(DataError, match="is not ascii"):
        decode(TEXT.encode(), "a.txt", encoding="ascii")
    with pytest.raises(DataError, match="no encoding 'klingon'"):
        decode(TEXT.encode(), "a.txt", encoding="klingon")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"PK\x03\x04...", "EPUB"),
        (b"\x1f\x8b\x08...", "gzip"),
        (b"GGUF\x03...", "model file"),
        (b"\n <!DOCTYPE html><html>...", "web page"),
        (b"some text\nand\0zero\n", "line 2 holds a zero byte"),
        (b"\xff\xfea", "utf-16"),
    ],
)
def test_what_is_no_text_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(data, "a.txt")


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("Die MÃ¼llerin sagte â€žneinâ€œ", "Die Müllerin sagte „nein“"),
        ("Fish &amp; chips", "Fish & chips"),
        ("the \ufb01rst", "the first"),
        ("cafe\u0301", "café"),
        ("a\x0bb\x1b[31mc", "abc"),
        # what is right stays
        ("“curly” ‘quotes’ – and — dashes…", "“curly” ‘quotes’ – and — dashes…"),
        ("村口的水泵，坏了。", "村口的水泵，坏了。"),
        ("2 × 10⁻⁵ Δν → ℓ", "2 × 10⁻⁵ Δν → ℓ"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_mending(line: str, mended: str) -> None:
    assert Mender().mend(line) == mended
