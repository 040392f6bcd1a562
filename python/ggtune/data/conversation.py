"""What every data format becomes: a conversation of turns, or a text that is learned from first to last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """What one side says.

    ``learned``: whether the loss is on an assistant's turn; None leaves that to the choice made for the whole data.
    ``weight`` multiplies the weights of its tokens. ``thinking`` is what an assistant wrote before its answer
    (``reasoning_content``), ``fields`` what else a message has for the template (``tool_calls``, ``name``, ...).
    """

    role: Role
    text: str
    learned: bool | None = None
    weight: float = 1.0
    thinking: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Turns in order. ``row`` counts as the file does: a table's header is row 1, a text's first line is line 1.

    ``tools`` are the descriptions that the template gets; ``weight`` multiplies the weights of all tokens;
    ``category`` is a word for reports, and trains nothing.
    """

    turns: tuple[Turn, ...]
    row: int
    weight: float = 1.0
    tools: tuple[Any, ...] = ()
    category: str = ""

    @property
    def system(self) -> str | None:
        """The system text, None without one."""
        first = self.turns[0] if self.turns else None
        return first.text if first is not None and first.role == "system" else None

    def with_system(self, text: str | None) -> Conversation:
        """Give it a system text where it has none of its own."""
        if not text or self.system is not None:
            return self
        return replace(self, turns=(Turn("system", text), *self.turns))


@dataclass(frozen=True)
class Document:
    """A text without turns: all of it is learned.

    A long one comes in pieces: one that ``goes_on`` is followed by the next, whose ``before`` is its last character.
    """

    text: str
    row: int
    weight: float = 1.0
    before: str = ""
    goes_on: bool = False
    category: str = ""


def exchange(
    question: str, answer: str, *, row: int, system: str | None = None, weight: float = 1.0, thinking: str = ""
) -> Conversation:
    """Make a conversation of one question and its answer."""
    first = (Turn("system", system),) if system else ()
    return Conversation((*first, Turn("user", question), Turn("assistant", answer, thinking=thinking)), row, weight)
