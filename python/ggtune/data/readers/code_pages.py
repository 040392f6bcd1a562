"""Which code page a text is in that is no Unicode: by charset-normalizer, which looks at how its languages are written.

Code pages with several bytes for a character are not guessed at: a wrong one makes other text, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator

WESTERN = "cp1252"
_TITLES = {
    WESTERN: "Windows-1252 (western Europe)",
    "cp1250": "Windows-1250 (central Europe)",
    "iso8859_2": "ISO 8859-2 (central Europe)",
    "cp1251": "Windows-1251 (Cyrillic)",
    "cp1253": "Windows-1253 (Greek)",
    "cp1254": "Windows-1254 (Turkish)",
    "cp1255": "Windows-1255 (Hebrew)",
    "cp1256": "Windows-1256 (Arabic)",
    "cp1257": "Windows-1257 (Baltic)",
    "koi8_r": "KOI8-R (Russian)",
    "koi8_u": "KOI8-U (Ukrainian)",
    "cp866": "DOS 866 (Cyrillic)",
    "iso8859_5": "ISO 8859-5 (Cyrillic)",
}
_LATIN = (WESTERN, "cp1250", "iso8859_2", "cp1254", "cp1257")
# letters and signs of the west's languages: of two pages theirs is likelier where a text has no other
_WESTERN_CHARACTERS = set(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜàáâãäåæçèéêëìíîïñòóôõöøùúûüÿßŒœ€£§°«»¿¡‘’“”‚„–—…•ªº·©®™´¨²³½¼¾×÷±\xa0"
)


def find_code_page(sample: bytes) -> Iterator[tuple[str, str]]:
    """Give the code pages that a text may be in with their names for a reader, the likeliest first.

    ``sample``: lines with characters beyond ASCII.
    """
    import charset_normalizer

    found = list(charset_normalizer.from_bytes(sample, cp_isolation=list(_TITLES)))
    names = [match.encoding for match in found]
    if found and names[0] in _LATIN and _is_western(sample):
        western = next((match for match in found if match.encoding == WESTERN), None)
        best = found[0]
        same = western is None and _decoded(sample, WESTERN) == str(best)
        if same or (western and western.chaos <= best.chaos and western.coherence >= best.coherence):
            names = [WESTERN, *(name for name in names if name != WESTERN)]
    for name in names:
        yield name, _TITLES[name]


def _is_western(sample: bytes) -> bool:
    text = _decoded(sample, WESTERN)
    found = {c for c in text or "" if not c.isascii()}
    # Hungarian's two letters that only look western: no language of the west has both
    return bool(found) and found <= _WESTERN_CHARACTERS and not {"õ", "û"} <= found


def _decoded(sample: bytes, encoding: str) -> str | None:
    try:
        return sample.decode(encoding)
    except UnicodeDecodeError:
        return None
