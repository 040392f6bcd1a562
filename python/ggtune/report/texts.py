"""Texts that come from data or models, made fit to be shown: nothing in them steers the page or who reads it."""

from __future__ import annotations

import re
import unicodedata

# what turns the direction of the text around it (https://www.unicode.org/reports/tr9/, and CVE-2021-42574)
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_HIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDI}\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_MOST_MARKS = 4  # combining ones on a letter


def shown_text(text: str, limit: int) -> str:
    """Cut a text to ``limit`` characters, saying how much is missing, and write out characters that can't be seen."""
    cut = text[:limit]
    shown = _HIDDEN.sub(_named, cut.replace("\r\n", "\n"))
    missing = len(text) - len(cut)
    return _without_towers(shown) + (f" … ({missing:,} more characters)" if missing else "")


def _named(found: re.Match[str]) -> str:
    return f"⟨U+{ord(found[0]):04X}⟩"


def _without_towers(text: str) -> str:
    """Leave out marks beyond a few on one letter, which would cover the lines around."""
    if text.isascii():
        return text
    kept, n_marks = [], 0
    for character in text:
        n_marks = n_marks + 1 if unicodedata.combining(character) else 0
        if n_marks <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)
