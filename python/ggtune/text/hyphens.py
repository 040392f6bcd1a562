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
_DASH = re.compile(r"(?:--|—)$")


class Vocabulary:
    """How often each word occurs in lines, in small letters, those that a line's end divides left out."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._counts: Counter[str] = Counter()
        divided = False
        for line in lines:
            words = _WORD.findall(line.lower())
            ends_divided = _LAST_PART.search(line.rstrip()) is not None
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
        return whole if not self._counts[first.lower()] or not self._counts[second.lower()] else hyphenated


def join_lines(line: str, following: str, vocabulary: Vocabulary | None) -> tuple[str, bool]:
    """Return two lines as one, and whether a hyphen went. ``vocabulary`` None leaves hyphens as they are."""
    line, following = line.rstrip(), following.lstrip()
    if _DASH.search(line) or (following.startswith(("--", "—")) and following[:3].strip("-—")):
        return line + following, False
    if line.endswith("\u00ad") and following[:1].isalpha():
        return line[:-1] + following, True
    first, second = _LAST_PART.search(line), _FIRST_PART.match(following)
    if first is None or second is None:
        glue = "" if _is_wide(line[-1:]) and _is_wide(following[:1]) else " "
        return line + glue + following, False
    if second[0].lower() in _SUSPENDED:
        return f"{line} {following}", False
    if vocabulary is None:
        return line + following, False
    word = vocabulary.joined(first[1], second[0]) if line[-1] != "¬" else first[1] + second[0]
    return line[: first.start()] + word + following[second.end() :], "-" not in word[len(first[1]) :][:1]


def _is_wide(character: str) -> bool:
    """Characters of scripts that put no spaces between words."""
    return bool(character) and ("\u3000" <= character <= "\u9fff" or "\uff00" <= character <= "\uff60")
