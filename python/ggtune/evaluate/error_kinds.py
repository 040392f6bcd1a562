"""What is wrong with answers, told from the texts alone: each gets one kind, the first in the list that fits."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggtune.evaluate.answer_texts import entities, has_word, loops, numbers, overlap, terms, words
from ggtune.evaluate.languages import LanguageTeller

RIGHT = "right"
KINDS = {
    "empty": "nothing but white space",
    "endless": "the same over and over, without an end",
    "cut": "no end within the most tokens that were allowed",
    RIGHT: "what the reference says",
    "copied question": "the question once more, and nothing beside it",
    "other language": "another language than the reference's",
    "off-topic": "hardly a word in common with question and reference",
    "wrong number": "another number than the reference's",
    "missing entity": "without most of the reference's names and numbers, or all words that it adds to the question",
    "other wording": "none of these: other words than the reference's, right or wrong",
}

_RIGHT_F1 = 0.8  # of words, where all numbers and names are there
_COPIED_F1 = 0.8
_CONTAINED_WORDS = 6  # a reference of at most so many, which a longer answer may hold whole
_OFF_TOPIC_SHARE = 0.15
_OFF_TOPIC_TERMS = 4  # fewer say nothing of a topic
_MISSING_SHARE = 0.5  # of the reference's entities
_LEAST_OF_GROUP = 2
_MOST_CATEGORIES = 12
_WORST_SHOWN = 3


def error_kinds(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the kind (:data:`KINDS`) of each answer; they are as in ``answers.jsonl``, all of one data set."""
    teller = LanguageTeller([str(answer["reference"]) for answer in answers])
    return [_kind(answer, teller) for answer in answers]


def _kind(row: Mapping[str, Any], teller: LanguageTeller) -> str:
    question, reference, answer = (str(row[name] or "") for name in ("question", "reference", "answer"))
    if not answer.strip():
        return "empty"
    if not row.get("ended", True):
        return "endless" if loops(answer) else "cut"
    if is_right(question, reference, answer):
        return RIGHT
    answered = words(answer)
    copied = overlap(answered, words(question))
    adds_nothing = terms(answer, None) <= terms(question, None)
    if adds_nothing and copied >= _COPIED_F1 and copied > overlap(answered, words(reference)):
        return "copied question"
    if teller.differs(answer, reference or question):
        return "other language"
    if not reference.strip():
        return "other wording"
    if _is_off_topic(question, reference, answer):
        return "off-topic"
    wanted, given = numbers(reference) - numbers(question), numbers(answer)
    missing = wanted - given
    if missing and given - numbers(question) - wanted:
        return "wrong number"
    names = {name for name in entities(reference) if not has_word(question, name)}
    n_without = len(missing) + sum(not has_word(answer, name) for name in names)
    added = terms(reference) - terms(question)
    if n_without > _MISSING_SHARE * (len(wanted) + len(names)) or (added and not added & terms(answer)):
        return "missing entity"
    return "other wording"


def is_right(question: str, reference: str, answer: str) -> bool:
    """Whether an answer says what the reference says: its words, or hardly others and all numbers and names."""
    wanted, given = words(reference), words(answer)
    if not wanted:
        return False
    if wanted == given:
        return True
    everything = (numbers(reference) - numbers(question) <= numbers(answer)) and all(
        has_word(answer, name) for name in entities(reference) if not has_word(question, name)
    )
    if not everything or numbers(answer) - numbers(question) - numbers(reference):
        return False
    if overlap(wanted, given) >= _RIGHT_F1:
        return True
    return len(wanted) <= _CONTAINED_WORDS and _holds(given, wanted)


def _holds(text: Sequence[str], part: Sequence[str]) -> bool:
    return any(list(text[i : i + len(part)]) == list(part) for i in range(len(text) - len(part) + 1))


def _is_off_topic(question: str, reference: str, answer: str) -> bool:
    about = terms(answer)
    if len(about) < _OFF_TOPIC_TERMS:
        return False
    common = about & (terms(question) | terms(reference))
    return len(common) < _OFF_TOPIC_SHARE * len(about)


@dataclass(frozen=True)
class Group:
    """Answers that have something in common, and how many of each kind they are."""

    name: str
    n: int
    kinds: Mapping[str, int]
    loss: float | None  # nats per target token of the references; None where it was not measured

    @property
    def right(self) -> float:
        """Share of the answers that are right."""
        return self.kinds.get(RIGHT, 0) / self.n

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "n": self.n, "right": self.right, "kinds": dict(self.kinds), "loss": self.loss}


@dataclass(frozen=True)
class ErrorSummary:
    """Answers by kind, and what each category, length and loss makes of them."""

    all: Group
    kinds: tuple[str, ...]  # of each answer
    categories: tuple[Group, ...]  # none without a category column
    lengths: tuple[Group, ...]  # by words of the reference
    losses: tuple[Group, ...]
    language_by: str  # "py3langid" or "script"

    def lines(self) -> list[str]:
        """Say it in sentences."""
        if not self.all.n:
            return []
        lines = ["Kinds of answers (told from the texts, without a judge):"]
        width = max(len(kind) for kind in self.all.kinds)
        for kind, n in self.all.kinds.items():
            lines.append(f"  {kind:<{width}}  {n:>5}  {100 * n / self.all.n:>3.0f} %  {KINDS[kind]}")
        if self.language_by == "script" and self.all.n > self.all.kinds.get(RIGHT, 0):
            lines.append("  Languages are told by their script alone: pip install 'ggtune[scores]' for more.")
        lines += _said("By category", self.categories)
        lines += _said("By length of the reference", self.lengths)
        lines += _said("By loss", self.losses)
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        groups = {"categories": self.categories, "lengths": self.lengths, "losses": self.losses}
        return {
            "n": self.all.n,
            "kinds": dict(self.all.kinds),
            **{name: [group.to_dict() for group in found] for name, found in groups.items()},
            "language_by": self.language_by,
        }


def error_summary(answers: Sequence[Mapping[str, Any]]) -> ErrorSummary:
    """Sort answers, as in ``answers.jsonl``, by kind; the kinds in the order of :data:`KINDS`."""
    kinds = error_kinds(answers)
    everything = _group("all", answers, kinds, range(len(answers)))
    by_category: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer.get("category"):
            by_category.setdefault(str(answer["category"]), []).append(i)
    lengths = [float(len(words(str(answer["reference"] or "")))) for answer in answers]
    losses = [loss if (loss := _loss([answer])) is not None else math.nan for answer in answers]
    by = LanguageTeller([]).by
    return ErrorSummary(
        everything,
        tuple(kinds),
        tuple(
            sorted(
                (_group(name, answers, kinds, found) for name, found in by_category.items()),
                key=lambda group: (group.right, -group.n),
            )
        ),
        _thirds(lengths, ("short", "middle", "long"), "words", answers, kinds),
        _thirds(losses, ("low", "middle", "high"), "nats per token", answers, kinds),
        by,
    )


def _group(
    name: str, answers: Sequence[Mapping[str, Any]], kinds: Sequence[str], chosen: Sequence[int] | range
) -> Group:
    counts = Counter(kinds[i] for i in chosen)
    return Group(
        name,
        len(chosen),
        {kind: counts[kind] for kind in KINDS if counts[kind]},
        _loss([answers[i] for i in chosen]),
    )


def _loss(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """Nats per target token."""
    measured = [a for a in answers if a.get("loss") is not None and a.get("n_targets")]
    n_targets = sum(int(a["n_targets"]) for a in measured)
    return sum(float(a["loss"]) for a in measured) / n_targets if n_targets else None


def _thirds(
    values: Sequence[float],
    names: tuple[str, str, str],
    unit: str,
    answers: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
) -> tuple[Group, ...]:
    """Three groups of about as many answers each, equal values together; none where there is nothing to tell apart."""
    order = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: values[i])
    if len(order) < len(names) * _LEAST_OF_GROUP or values[order[0]] == values[order[-1]]:
        return ()
    cuts = [values[order[len(order) * part // 3]] for part in (1, 2)]
    groups = []
    for number, name in enumerate(names):
        chosen = [i for i in order if sum(values[i] >= cut for cut in cuts) == number]
        if chosen:
            span = f"{values[chosen[0]]:.3g} to {values[chosen[-1]]:.3g} {unit}"
            groups.append(_group(f"{name}, {span}", answers, kinds, chosen))
    return tuple(groups) if len(groups) > 1 else ()


def _said(title: str, groups: Sequence[Group]) -> list[str]:
    if not groups:
        return []
    shown = groups[:_MOST_CATEGORIES]
    width = min(48, max(len(group.name) for group in shown))
    lines = [f"{title}:"]
    for group in shown:
        wrong = [(kind, n) for kind, n in group.kinds.items() if kind != RIGHT]
        wrong.sort(key=lambda pair: -pair[1])
        loss = f", loss {group.loss:.3f}" if group.loss is not None else ""
        listed = ", ".join(f"{kind} {n}" for kind, n in wrong[:_WORST_SHOWN])
        lines.append(
            f"  {group.name[:width]:<{width}}  {group.kinds.get(RIGHT, 0)} of {group.n} right{loss}"
            + (f"; {listed}" if listed else "")
        )
    if len(groups) > len(shown):
        lines.append(f"  ... and {len(groups) - len(shown)} more")
    return lines
