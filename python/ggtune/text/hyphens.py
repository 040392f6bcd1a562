"""Words that a line's end divides: put together where the book itself says that they are one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[^\W\d_]+(?:[-'’‐][^\W\d_]+)*")
_LAST_PART = re.compile(r"([^\W\d_]+(?:[-'’‐][^\W\d_]+)*)[-‐¬\u00ad]$")
_FIRST_PART = re.compile(r"[^\W\d_]+(?:[-'’‐][^\W\d_]+)*")
_SUSPENDED = frozenset(
    ("and", "or", "to", "und", "oder", "bis", "et", "ou", "y", "o", "e", "of", "en")
)  # "two- and three-fold"
_HYPHENS = ("-", "‐", "¬", "\u00ad")
_DASHES = ("--", "—")
_LONGEST_WORD = 80


class Vocabulary:
    """How often each word occurs in lines, in small letters, those that a line's end divides left out."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._counts: Counter[str] = Counter()
        divided = False
        for line in lines:
            words = _WORD.findall(line.lower())
            ends_divided = _divided(line.rstrip()) is not None
            self._counts.update(words[divided : len(words) - ends_divided])
            divided = ends_divided

    def joined(self, first: str, second: str) -> str:
        """Return ``first`` and ``second``, which ``first-`` and ``second`` at a line's end and start stand for.

        The word as the book writes it elsewhere counts. Where it never does, the hyphen stays between what are words
        of their own, names and numbers, and goes otherwise.
        """
        whole, hyphenated = f"{first}{second}", f"{first}-{second}"
        n_whole, n_hyphenated = self._counts[whole.lower()], self._counts[hyphenated.lower()]
        if n_whole != n_hyphenated:
            return whole if n_whole > n_hyphenated else hyphenated
        if second[0].isupper() or "-" in first or (self._counts[first.lower()] and self._counts[second.lower()]):
            return hyphenated
        return whole


def join_lines(line: str, following: str, vocabulary: Vocabulary | None) -> tuple[str, bool]:
    """Return two lines as one, and whether a hyphen went. ``vocabulary`` None leaves hyphens as they are."""
    line, following = line.rstrip(), following.lstrip()
    if line.endswith(_DASHES) or (following.startswith(_DASHES) and following[:3].strip("-—")):
        return line + following, False
    if line.endswith("\u00ad") and following[:1].isalpha():
        return line[:-1] + following, True
    first, second = _divided(line), _FIRST_PART.match(following)
    if first is None or second is None:
        glue = "" if _is_wide(line[-1:]) and _is_wide(following[:1]) else " "
        return line + glue + following, False
    if second[0].lower() in _SUSPENDED:
        return f"{line} {following}", False
    if vocabulary is None:
        return line + following, False
    word = vocabulary.joined(first, second[0]) if line[-1] != "¬" else first + second[0]
    return line[: -len(first) - 1] + word + following[second.end() :], word == first + second[0]


def _divided(line: str) -> str | None:
    """Return the part of a word that ends in a hyphen at the line's end, without that; None where none does."""
    if not line.endswith(_HYPHENS):
        return None
    match = _LAST_PART.search(line[-_LONGEST_WORD:])
    return match[1] if match else None


def _is_wide(character: str) -> bool:
    """Characters of scripts that put no spaces between words."""
    return bool(character) and ("\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uff60")
