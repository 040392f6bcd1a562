"""``<SFT>`` text: rendered samples one after another, each behind a marker.

The format of llama.cpp's former ``finetune`` (``--sample-start``): what stands before the first marker is no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ggtune.data.conversation import Conversation, Turn
from ggtune.data.readers.decoding import read_text
from ggtune.data.readers.sft_samples import SAMPLE_START, TextSample, split_samples
from ggtune.data.records import Record, Table
from ggtune.data.segments import RenderedConversation, Segment, joined
from ggtune.data.templates import PromptTemplate, Template
from ggtune.data.thinking import split_thought
from ggtune.data.tokenization import Tokenizer, token_text
from ggtune.errors import DataError, GgtuneError

_PROBE = "8Qu6Xw"  # no template writes it
_SHOWN = 10  # problems listed in one message


@dataclass(frozen=True)
class TextTurn:
    """A text sample of one answer."""

    rendered: RenderedConversation
    prompt: str  # without BOS and prefix
    has_answer: bool  # there is more than an end token
    end_appended: bool  # the text had no end token


def write_sft(
    path: str | Path,
    records: Sequence[Record],
    template: Template,
    *,
    system: str | None = None,
    sample_start: str = SAMPLE_START,
) -> str:
    """Render records as ``<SFT>`` text; ``system`` is for those without one of their own. ``path`` is for messages.

    Raises :class:`DataError` naming every row whose text would be read back as something else.
    """
    problems: list[str] = []
    lines: list[str] = []
    for record in records:
        system_text = record.system or system
        try:
            lines.append(f"{sample_start}{template.render(system_text, record.question, record.answer).text}\n")
        except GgtuneError as error:
            raise DataError(f"{path}: row {record.row}: {error}") from error
        everything = "\n".join((system_text or "", record.question, record.answer))
        marks = [mark for mark in (sample_start, template.bos, template.end) if mark and mark in everything]
        tag = answer_tag(template)
        if tag in record.question or tag in (system_text or ""):
            marks.append(tag)
        problems += [f"row {record.row} holds {mark!r}" for mark in marks]
    if problems:
        raise DataError(
            f"{path}: can't be written as {sample_start} text, where these would not stay text: {_listed(problems)}. "
            "Change the rows, or train on the table itself."
        )
    return "".join(lines)


def read_sft(
    path: str | Path, template: PromptTemplate, *, sample_start: str = SAMPLE_START, encoding: str = ""
) -> Table:
    """Read ``<SFT>`` text back into records (``row`` is the line). Raises :class:`DataError` naming each odd line."""
    problems: list[str] = []
    records: list[Record] = []
    empty: list[int] = []
    for sample in split_samples(path, read_text(path, encoding=encoding), sample_start):
        try:
            system, question, answer = template.parse(sample.text)
        except ValueError as error:
            problems.append(f"line {sample.line}: {error}")
            continue
        if question and answer:
            records.append(Record(question, answer, system, sample.line))
        else:
            empty.append(sample.line)
    if problems:
        raise DataError(f"{path}: is not in the form of the template '{template.name}': {_listed(problems)}.")
    if not records:
        raise DataError(f"{path}: no sample with a question and an answer.")
    return Table(tuple(records), tuple(empty), ())


def answer_tag(template: Template) -> str:
    """Text that the answer starts behind."""
    return template.after_question.lstrip() or template.after_question


def find_template(samples: Sequence[TextSample], candidates: Iterable[Template]) -> Template | None:
    """Find the template whose answer tag is in most samples (the first such one), None where no tag is in any."""
    best, best_count = None, 0
    for candidate in candidates:
        count = sum(answer_tag(candidate) in sample.text for sample in samples)
        if count > best_count:
            best, best_count = candidate, count
    return best


def question_tag(template: Template) -> str:
    """Text that a further question starts behind, "" for a template of one turn."""
    probe = Conversation(
        (Turn("user", "Qa"), Turn("assistant", "Aa"), Turn("user", _PROBE), Turn("assistant", "Ab")), 0
    )
    try:
        segments = template.render_conversation(probe).segments
    except GgtuneError:
        return ""
    answered = max(i for i, segment in enumerate(segments) if segment.turn == 1)
    text = "".join(segment.text for segment in segments[answered + 1 :])
    return text.partition(_PROBE)[0].strip().removeprefix(template.bos).strip()


def turns_of_text(
    text: str, template: Template, *, tag: str, next_question: str, ends: Sequence[str], prefix: str = ""
) -> RenderedConversation | None:
    """Tell the turns of a rendered text apart; None where there is no answer. What follows the last one is left out.

    An answer ends behind the first of ``ends``, or where the next question starts. ``prefix`` goes in front of the
    text. Raises :class:`DataError` (without file and line) where neither is found.
    """
    first, *parts = text.split(tag)
    if not parts:
        return None
    segments = [Segment(prefix + first + tag)]
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        at, end = min(((part.index(end), end) for end in ends if end and end in part), default=(-1, ""))
        if at < 0 and next_question and next_question in part:
            at = part.index(next_question)
        if at < 0 and not last:
            raise DataError(
                f"it is unknown where answer {i + 1} of {len(parts)} ends: there is no {' or '.join(map(repr, ends))} "
                f"in front of the next {tag!r}"
            )
        answer = _trim(part if at < 0 else part[:at], template.answer_suffix)
        segments += _answer_segments(segments[-1].text, answer, end, template, turn=2 * i + 1)
        if not last:
            segments.append(Segment(part[at + len(end) :] + tag))
    return RenderedConversation("", joined(segments))


def turn_of_text(
    tokenizer: Tokenizer, template: Template, text: str, *, tag: str, prefix: str = "", bos_is_tag: bool = False
) -> TextTurn:
    """Tell prompt and answer of a text sample apart; a missing end token is appended.

    The answer starts behind the first ``tag``; where there is none all of the text is the answer. ``prefix`` goes in
    front of the text, behind the BOS. Surplus white space behind question and answer is dropped, as it is from the
    cells of a table. ``bos_is_tag``: nobody puts the model's BOS in front of a text again, so that it stays in it.
    """
    bos = token_text(tokenizer, tokenizer.bos_token)
    text, has_bos = _without_bos(text, [bos, template.bos])
    tokens = tokenizer.tokenize(text, parse_special=True).tolist()
    end = template.end
    end_appended = False
    if tokens and tokenizer.is_end_token(tokens[-1]):
        end = token_text(tokenizer, tokens[-1])
        text = text.removesuffix(end)
    elif end and text.endswith(end):  # an end token that the model does not know
        text = text.removesuffix(end)
    else:
        end_appended = True
        text += template.answer_suffix
    text = _trim(text, template.answer_suffix)
    prompt, answer = "", text
    if tag and tag in text:
        before, _, answer = text.partition(tag)
        prompt = _trim(before, template.after_question.removesuffix(tag)) + tag
    prompt = (bos if has_bos and bos_is_tag else "") + prompt
    segments = [Segment(prefix + prompt), *_answer_segments(prompt, answer, end, template, turn=1)]
    return TextTurn(RenderedConversation("", joined(segments)), prompt, bool(answer.strip()), end_appended)


def _answer_segments(given: str, answer: str, end: str, template: Template, *, turn: int) -> list[Segment]:
    thought, rest = split_thought(given, answer, template.thinking_tags)
    return [
        Segment(thought, turn=turn, thinking=True),
        Segment(rest, turn=turn),
        Segment(end, turn=turn, is_end=True),
    ]


def _trim(text: str, margin: str) -> str:
    """Drop white space before the template's own at the end of a text."""
    return text.rstrip() + margin if text.endswith(margin) else text


def without_bos(text: str, bos_texts: Sequence[str]) -> str:
    """Drop every BOS text in front."""
    return _without_bos(text, list(bos_texts))[0]


def _without_bos(text: str, bos_texts: list[str]) -> tuple[str, bool]:
    """Drop every BOS text in front; tells whether the first of ``bos_texts``, the model's own, was among them."""
    has_bos = False
    while True:
        found = next((bos for bos in bos_texts if bos and text.startswith(bos)), None)
        if found is None:
            return text, has_bos
        has_bos |= found == bos_texts[0]
        text = text.removeprefix(found)


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
