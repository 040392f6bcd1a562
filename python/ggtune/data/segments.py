"""Rendered text in pieces: what a template wrote, what people wrote, and which of it the assistant has to write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Segment:
    """A piece of rendered text; ``literal`` text came from the user and holds no special tokens.

    ``turn`` is the index of the assistant's turn that the piece is part of (its words, what the template writes before
    and behind them, its end token); -1 for what the model is given. ``thinking`` tells its thought with the thought's
    tags from the answer (:mod:`ggtune.data.thinking`). ``is_end``: the end token's text, "" for the model's own EOS.
    """

    text: str
    literal: bool = False
    turn: int = -1
    thinking: bool = False
    is_end: bool = False


def joined(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Neighbouring pieces of a template's that differ in nothing but their text as one, empty ones dropped."""
    found: list[Segment] = []
    for segment in segments:
        if not segment.text and not segment.is_end:
            continue
        before = found[-1] if found else None
        if before is not None and not segment.literal and replace(before, text=segment.text) == segment:
            found[-1] = replace(before, text=before.text + segment.text)
        else:
            found.append(segment)
    return tuple(found)


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as one text: ``bos`` and the segments, up to the last turn's end token.

    ``without_thinking``: indices of the assistant's turns that have thoughts which the template leaves out.
    """

    bos: str
    segments: tuple[Segment, ...]
    without_thinking: frozenset[int] = frozenset()

    @property
    def text(self) -> str:
        """The whole text with the BOS in front, if the template writes one."""
        return self.bos + "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Rendered:
    """One turn. ``text`` is ``bos + prompt + answer``; the answer includes the template's end token text."""

    bos: str
    prompt_segments: tuple[Segment, ...]
    answer_segments: tuple[Segment, ...]

    @classmethod
    def of(cls, rendered: RenderedConversation) -> Rendered:
        """Take the last turn of a conversation as the answer."""
        segments = rendered.segments
        first = next((i for i, segment in enumerate(segments) if segment.turn == segments[-1].turn), 0)
        return cls(rendered.bos, segments[:first], tuple(segment for segment in segments[first:] if segment.text))

    @property
    def prompt(self) -> str:
        """Everything that the model is given, without the BOS."""
        return "".join(segment.text for segment in self.prompt_segments)

    @property
    def answer(self) -> str:
        """Everything that the model has to write."""
        return "".join(segment.text for segment in self.answer_segments)

    @property
    def text(self) -> str:
        """The whole text with the BOS in front, if the template writes one."""
        return self.bos + self.prompt + self.answer
