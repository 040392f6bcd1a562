"""Texts that spell special tokens, kept apart from a template's own tags even where the template rewrites them.

Each such text is replaced by a mark that a template passes on whatever it does (JSON, quoting, cutting); what stands at
the mark in the rendered text is people's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, TypeVar

_T = TypeVar("_T")
# of letters and digits alone, as the marks of turns
_MARK = "7Sp{index:06d}Zq9"
MARK = re.compile(r"7Sp\d{6}Zq9")


class SpelledTokens:
    """Marks in place of the special tokens that texts spell."""

    def __init__(self, special_texts: Callable[[], Iterable[str]]) -> None:
        """``special_texts`` gives the texts of all special tokens; it is called where a text may hold one."""
        self._special_texts = special_texts

    @cached_property
    def _marks(self) -> dict[str, str]:
        texts = sorted({text for text in self._special_texts() if text}, key=lambda text: (-len(text), text))
        return {text: _MARK.format(index=index) for index, text in enumerate(texts)}

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {mark: text for text, mark in self._marks.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._marks)) or "(?!)")  # the longest first

    def marked(self, value: _T) -> _T:
        """Put marks into a text, or into all texts of an object or list, keys included."""
        return self._marked(value)  # type: ignore[no-any-return]

    def text_at(self, mark: str) -> str | None:
        """Give the text that a mark stands for; None for what is no mark."""
        return self._texts.get(mark) if MARK.fullmatch(mark) else None

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._pattern.sub(lambda found: self._marks[found[0]], value)
        if isinstance(value, Mapping):
            return {self._marked(key): self._marked(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._marked, value))
        return value
