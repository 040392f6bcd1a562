"""Words of a text in any script."""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

# scripts written without spaces between words, by their ranges in Unicode
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x20000, 0x3FFFF),
)
_MARKS = ("Mn", "Mc", "Me", "Cf")  # belong to the letter before


@lru_cache(maxsize=4096)
def is_without_spaces(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    code = ord(character)
    return any(first <= code <= last for first, last in _WITHOUT_SPACES)


def has_no_spaces(text: str) -> bool:
    """Whether a text has characters of such a script."""
    return any(is_without_spaces(character) for character in text)


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; each character of a script without spaces is a word of its own."""
    return list(_words(unicodedata.normalize("NFC", text).lower()))


def _words(text: str) -> Iterator[str]:
    word = ""
    for character in text:
        kind = unicodedata.category(character)
        if is_without_spaces(character) and kind not in _MARKS:
            if word:
                yield word
            word = ""
            if kind[0] in "LN":
                yield character
        elif kind[0] in "LN" or (kind in _MARKS and word) or (character in "'’" and word):
            word += character
        else:
            if word:
                yield word.rstrip("'’")
            word = ""
    if word:
        yield word.rstrip("'’")


def is_mostly_other_script(text: str) -> bool:
    """Whether most letters of a text are not Latin ones."""
    letters = [character for character in text if character.isalpha()]
    other = sum(not _is_latin(character) for character in letters)
    return 2 * other > len(letters)


@lru_cache(maxsize=4096)
def _is_latin(character: str) -> bool:
    return unicodedata.name(character, "").startswith(("LATIN", "FULLWIDTH LATIN"))
