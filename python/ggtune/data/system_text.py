"""Which system text the samples of a file have: what a model has to be asked with after the training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ggtune.data.templates import Template
from ggtune.errors import GgtuneError

# no template writes such texts, and none changes them (white space, letter case)
_SYSTEM, _QUESTION = "7Sy5Zq", "8Qu6Xw"


@dataclass(frozen=True)
class SystemText:
    """``text``: of every sample, "" where none has one; None where they differ, or where it can't be told."""

    text: str | None = None
    differs: bool = False


def system_of_records(texts: Iterable[str | None]) -> SystemText:
    """Compare the system texts of a table's rows."""
    distinct = {text or "" for text in texts}
    return SystemText(distinct.pop()) if len(distinct) == 1 else SystemText(differs=bool(distinct))


def system_of_prompts(prompts: Sequence[str], template: Template) -> SystemText:
    """Find the system texts in prompts that ``template`` wrote (without BOS), by where rendered probes have theirs."""
    head, _, tail = template.render_prompt(None, _QUESTION).prompt.partition(_QUESTION)
    try:
        before, _, rest = template.render_prompt(_SYSTEM, _QUESTION).prompt.partition(_SYSTEM)
    except GgtuneError:  # there is no place for one
        return SystemText("")
    between, found, _ = rest.partition(_QUESTION)
    if not found or not between:
        return SystemText()
    if before == head:
        return _common_start(prompts, head, between, tail)
    default = head[len(before) : len(head) - len(between)] if head.startswith(before) else None
    distinct: set[str | None] = set()
    for prompt in prompts:
        middle = _inside(prompt, before, tail)
        system, found, _ = middle.partition(between) if middle is not None else ("", "", "")
        if found:
            distinct.add("" if system == default else system)
        else:
            distinct.add("" if _inside(prompt, head, tail) is not None else None)
    if len(distinct - {None}) > 1:
        return SystemText(differs=True)
    return SystemText(distinct.pop()) if len(distinct) == 1 else SystemText()


def _common_start(prompts: Sequence[str], head: str, between: str, tail: str) -> SystemText:
    """Take what all questions start with: the template puts the system text in front of the question, without a tag."""
    questions = [middle for prompt in prompts if (middle := _inside(prompt, head, tail)) is not None]
    if len(questions) < len(prompts):
        return SystemText()
    first, last = min(questions), max(questions)  # of sorted texts these two have least in common
    if first == last:  # a single question starts with itself
        return SystemText("")
    same = takewhile(bool, (a == b for a, b in zip(first, last, strict=False)))
    return SystemText(first[: sum(same)].rpartition(between)[0])


def _inside(text: str, before: str, after: str) -> str | None:
    if len(text) < len(before) + len(after) or not text.startswith(before) or not text.endswith(after):
        return None
    return text[len(before) : len(text) - len(after)]
