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
        halves: list[tuple[str, str]] = []
        first = None
        for line in lines:
            words = _WORD.findall(line.lower())
            if first is not None and words:
                halves.append((first, words[0]))
            part = _divided(line.rstrip().lower())
            self._counts.update(words[first is not None : len(words) - (part is not None)])
            first = part
        written = [self._written(*pair) for pair in halves]
        self._hyphenates = written.count(True) > written.count(False)

    def _written(self, first: str, second: str) -> bool | None:
        """Whether the text elsewhere has two halves as one word (True) or with a hyphen (False); None for neither."""
        n_whole, n_hyphenated = self._counts[first + second], self._counts[f"{first}-{second}"]
        return None if n_whole == n_hyphenated else n_whole > n_hyphenated

    def joined(self, first: str, second: str) -> str:
        """Return ``first`` and ``second``, which ``first-`` and ``second`` at a line's end and start stand for.

        The word as the text writes it elsewhere counts. Where it never does: a text that divided most of the words that
        can be told has divided this one; in others the hyphen stays where one of the halves is a word.
        """
        whole, hyphenated = first + second, f"{first}-{second}"
        written = self._written(first.lower(), second.lower())
        if written is None:
            is_name = second[0].isupper() or "-" in first
            known = self._counts[first.lower()] or self._counts[second.lower()]
            written = not is_name and (self._hyphenates or not known)
        return whole if written else hyphenated


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
