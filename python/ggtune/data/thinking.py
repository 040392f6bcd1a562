"""Which part of what an assistant writes is its thought: one rule for every template.

The tags belong to the thought, and so does what the template writes in front of it. The answer is what follows the
closing tag, white space first. An empty block (``<think></think>``) is a thought's tags without a thought.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from ggtune.data.segments import Segment

_TAG = r"(?:<[^<>\n]*>|\[[^\[\]\n]*\])"


@dataclass(frozen=True)
class ThinkingTags:
    """What stands around a thought, without white space; "" where there is nothing."""

    opening: str
    closing: str


THINK = ThinkingTags("<think>", "</think>")
"""Written around the thoughts for templates that know none."""


def find_tags(before: str, behind: str) -> ThinkingTags | None:
    """Find the tags in what a template writes before a thought, and between the thought and the answer.

    None where the answer follows without any. A tag of several parts closes with the words that it opened with:
    ``<|open|>think<|sep|>`` ... ``<|close|>think<|sep|>``.
    """
    closing = re.match(rf"\s*({_TAG})", behind)
    if closing is None:
        return None
    before, rest = before.rstrip(), behind[closing.end() :]
    ends = (rest[:n] for n in range(len(rest), 0, -1))
    repeated = next((end for end in ends if end.strip() and before.endswith(end)), "")
    opening = re.search(rf"{_TAG}$", before)
    return ThinkingTags(opening[0] if opening else "", closing[1] + repeated)


def mark_thinking(segments: Iterable[Segment], tags: Sequence[ThinkingTags]) -> Iterator[Segment]:
    """Mark the thoughts of all turns with their tags. The words of thoughts are marked already."""
    for turn, group in groupby(segments, key=lambda segment: segment.turn):
        pieces = list(group)
        yield from pieces if turn < 0 else _marked(pieces, tags)


def _marked(segments: Sequence[Segment], tags: Sequence[ThinkingTags]) -> Iterator[Segment]:
    thought = max((i for i, segment in enumerate(segments) if segment.thinking), default=-1)
    openings = [r"\s*" if thought >= 0 else rf"\s*(?:{re.escape(tag.opening)})?\s*" for tag in tags]
    closing = "|".join(start + re.escape(tag.closing) for start, tag in zip(openings, tags, strict=True))
    for i, segment in enumerate(segments):
        if i <= thought:
            yield replace(segment, thinking=True)
        elif i == thought + 1 and not segment.literal and not segment.is_end:
            closed = re.match(closing, segment.text)
            end = closed.end() if closed else 0
            yield replace(segment, text=segment.text[:end], thinking=True)
            yield replace(segment, text=segment.text[end:])
        else:
            yield segment


def split_thought(given: str, answer: str, tags: Sequence[ThinkingTags]) -> tuple[str, str]:
    """Cut a rendered answer behind the thought that it starts with; ``given`` is the text in front of it."""
    for tag in tags:
        opened = answer.lstrip().startswith(tag.opening) or given.rstrip().endswith(tag.opening)
        if tag.opening and opened and tag.closing in answer:
            end = answer.index(tag.closing) + len(tag.closing)
            if answer[:end].replace(tag.opening, "").removesuffix(tag.closing).strip():
                return answer[:end], answer[end:]
    return "", answer
