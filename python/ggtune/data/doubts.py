"""What looks wrong in training data: rows that are whole, and yet hardly what anybody wants to train on."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ggtune.data.conversation import Conversation, Document
from ggtune.data.key_table import KeyTable
from ggtune.errors import GgtuneError

SHORT_ANSWER = 2  # characters

KINDS = {
    "duplicate": "the same question and answer as another row",
    "contradiction": "another answer to the same question",
    "leak": "the same question is trained on and held out",
    "short answer": f"an answer of at most {SHORT_ANSWER} characters, and no number",
    "cut answer": "a long answer that ends in the middle of a sentence",
    "copied question": "the answer is the question",
    "encoding damage": "characters of a text that was read in a wrong encoding",
    "template tags": "the text holds tags of a prompt template: is it rendered already?",
    "chatbot": "a refusal or a phrase that chatbots leave behind",
    "markup": "HTML tags or entities",
    "formula": "a spreadsheet's formula or error in place of a value",
    "placeholder": "a placeholder in place of a text",
    "control characters": "invisible control characters",
    "same answer": "one answer to very many different questions",
    "other script": "a text in another script than the other rows'",
    "long word": "a word of more than 200 characters: encoded data?",
    "repetition": "the same phrase over and over",
    "unanswered": "turns behind the last answer, which are not learned",
    "near duplicate": "nearly the same text as another row",
}

_TAGS = re.compile(
    r"<\|(?:im_start|im_end|eot_id|end|user|assistant|system|start_header_id|end_header_id|endoftext)\|>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|### (?:Instruction|Response|Human|Assistant):|</?s>(?=\s|$)"
)
# UTF-8 that was read as Windows-1252 or Latin-1, and what stands for characters that were lost
_MOJIBAKE = re.compile(
    r"[\u00c3\u00c2][\u0080-\u00bf\u0152\u0153\u0160\u0161\u2018-\u201e\u20ac]"
    r"|\u00e2\u20ac|\ufffd|\u00ef\u00bb\u00bf"
)
_CHATBOT = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b|\bas a (?:large )?language model\b"
    r"|\bI(?:'m| am) (?:sorry|unable), but\b|\bI (?:cannot|can't) (?:assist|help) with\b"
    r"|\bmy (?:knowledge|training) cutoff\b|\bChatGPT\b|\bRegenerate response\b",
    re.IGNORECASE,
)
_MARKUP = re.compile(
    r"</?(?:p|br|div|span|b|i|a|ul|li|table|td|tr)\b[^<>]*>|&(?:nbsp|amp|lt|gt|quot|#\d+);", re.IGNORECASE
)
_FORMULA = re.compile(r"^=[A-Z]+\(.*\)$|^#(?:REF!|NAME\?|VALUE!|DIV/0!|N/A|NULL!)$")
_PLACEHOLDER = re.compile(
    r"^(?:n/?a|null|none|nan|todo|tbd|xxx+|\?+|-+|\.+|lorem ipsum.*|your (?:answer|text) here\.?)$", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
_LONG_WORD = re.compile(r"\S{201,}")
_LEAST_PERIOD, _LONGEST_PERIOD, _REPETITIONS = 8, 80, 5  # of a repeated phrase
_REPEATED = re.compile(rf"(.{{{_LEAST_PERIOD},{_LONGEST_PERIOD}}}?)\1{{{_REPETITIONS - 1},}}", re.DOTALL)
_REPEATED_UP_TO = 1500  # characters
_ENDED = re.compile(r"[.!?:;)\]}\"'»”’…>`*|\d]\s*$|[\u3002\uff01\uff1f]\s*$")
_CUT_FROM = 200  # characters: shorter answers are often no sentences
_PERMUTATIONS = 128
_SAME_ANSWERS = 20  # so many questions with one answer are said
_LATIN = "Latin"
_SCRIPTS = (
    ("Cyrillic", re.compile(r"[\u0400-\u04ff]")),
    ("Greek", re.compile(r"[\u0370-\u03ff]")),
    ("Arabic", re.compile(r"[\u0600-\u06ff]")),
    ("Hebrew", re.compile(r"[\u0590-\u05ff]")),
    ("Chinese or Japanese", re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")),
    ("Korean", re.compile(r"[\uac00-\ud7af]")),
    ("Devanagari", re.compile(r"[\u0900-\u097f]")),
    (_LATIN, re.compile(r"[A-Za-z\u00c0-\u024f]")),
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something about a row; ``kind`` is one of :data:`KINDS`."""

    kind: str
    row: int
    text: str = ""  # which row it is like, or what was found

    def __str__(self) -> str:
        return f"{self.kind}{': ' + self.text if self.text else ''}"


class NearDuplicates:
    """Finds texts that share most of their runs of three words (MinHash with locality-sensitive hashing, datasketch).

    Raises :class:`GgtuneError` where datasketch is missing.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """``threshold``: Jaccard similarity of the sets of runs."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise GgtuneError("Near duplicates need datasketch: pip install 'ggtune[quality]'.") from error
        self._make, self._index = MinHash, MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)

    def add(self, row: int, text: str) -> int | None:
        """Remember a text; gives the row of one that is nearly the same."""
        words = text.casefold().split()
        runs = {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}
        sketch = self._make(num_perm=_PERMUTATIONS)
        sketch.update_batch(runs)
        found = [int(key.partition(":")[2]) for key in self._index.query(sketch)]
        self._index.insert(f"{len(self._index.keys)}:{row}", sketch)
        return min(found) if found else None


@dataclass
class Inspector:
    """Looks at conversations and texts one after another; of each it keeps a few hashes."""

    near: NearDuplicates | None = None
    doubts: list[Doubt] = field(default_factory=list)
    _wholes: KeyTable = field(default_factory=KeyTable)  # texts, and conversations of several turns
    _whole_rows: array[int] = field(default_factory=lambda: array("I"))  # their first rows
    _questions: KeyTable = field(default_factory=KeyTable)
    _question_rows: array[int] = field(default_factory=lambda: array("I"))  # their first rows
    _answers: array[int] = field(default_factory=lambda: array("q"))  # those of the first rows
    _scripts: dict[str, array[int]] = field(default_factory=dict)

    def add(self, item: Conversation | Document) -> tuple[int, set[str]]:
        """Look at one. Gives a hash of what it asks (the same for what must not be apart), and the kinds of doubts."""
        n_before = len(self.doubts)
        group = self._document(item) if isinstance(item, Document) else self._conversation(item)
        if self.near is not None and not any(doubt.kind == "duplicate" for doubt in self.doubts[n_before:]):
            texts = [item.text] if isinstance(item, Document) else [turn.text for turn in item.turns]
            like = self.near.add(item.row, "\n".join(texts))
            if like is not None:
                self.doubts.append(Doubt("near duplicate", item.row, f"of {like}"))
        return group, {doubt.kind for doubt in self.doubts[n_before:]}

    def add_rendered(self, row: int, prompt: str, answer: str) -> tuple[int, set[str]]:
        """Look at a text that has a template's tags already."""
        n_before = len(self.doubts)
        self._texts(row, [prompt, answer], tags=False)
        self._answer(row, answer)
        group = self._pair(row, prompt, answer, "")
        return group, {doubt.kind for doubt in self.doubts[n_before:]}

    def _document(self, item: Document) -> int:
        self._texts(item.row, [item.text])
        return self._whole(item.row, _hash(_normal(item.text)))

    def _conversation(self, item: Conversation) -> int:
        asked = [turn.text for turn in item.turns if turn.role == "user"]
        answers = [turn.text for turn in item.turns if turn.role == "assistant" and turn.text]
        self._texts(item.row, [turn.text for turn in item.turns])
        if item.turns[-1].role != "assistant":
            self.doubts.append(Doubt("unanswered", item.row))
        for answer in answers:
            self._answer(item.row, answer)
        fields = [repr(turn.fields) for turn in item.turns if turn.fields]
        if len(asked) == 1 and len(answers) == 1 and not fields:
            return self._pair(item.row, asked[0], answers[0], item.system or "")
        whole = self._whole(item.row, _hash("\0".join([*(_normal(turn.text) for turn in item.turns), *fields])))
        return _hash(_normal(asked[0])) if asked else whole

    def _whole(self, row: int, whole: int) -> int:
        number = self._wholes.number(whole)
        if number == len(self._whole_rows):
            self._whole_rows.append(row)
        else:
            self.doubts.append(Doubt("duplicate", row, f"of {self._whole_rows[number]}"))
        return whole

    def finish(self) -> list[Doubt]:
        """Give all doubts, with those that need all rows, in order of the rows."""
        for number, n_questions in _frequent(self._answers, _SAME_ANSWERS):
            self.doubts.append(Doubt("same answer", self._question_rows[number], f"to {n_questions} questions"))
        total = sum(len(rows) for rows in self._scripts.values())
        for script, rows in self._scripts.items():
            if len(rows) < 0.05 * total:
                self.doubts += [Doubt("other script", row, script) for row in rows]
        return sorted(self.doubts, key=lambda doubt: doubt.row)

    def _texts(self, row: int, texts: list[str], *, tags: bool = True) -> None:
        text = "\n".join(texts)
        for kind, pattern in (
            ("encoding damage", _MOJIBAKE),
            ("template tags", _TAGS),
            ("markup", _MARKUP),
            ("control characters", _CONTROL),
            ("long word", _LONG_WORD),
        ):
            if (tags or pattern is not _TAGS) and (found := pattern.search(text)):
                self.doubts.append(Doubt(kind, row, repr(found[0][:40])))
        if script := _script(text[:2000]):
            self._scripts.setdefault(script, array("I")).append(row)

    def _answer(self, row: int, answer: str) -> None:
        bare = answer.strip()
        if _FORMULA.match(bare):
            self.doubts.append(Doubt("formula", row, repr(bare[:40])))
        elif _PLACEHOLDER.match(bare):
            self.doubts.append(Doubt("placeholder", row, repr(bare[:40])))
        elif len(bare) <= SHORT_ANSWER and not bare.isdigit():
            self.doubts.append(Doubt("short answer", row, repr(bare)))
        if found := _CHATBOT.search(bare):
            self.doubts.append(Doubt("chatbot", row, repr(found[0])))
        if len(bare) >= _CUT_FROM and not _ENDED.search(bare):
            self.doubts.append(Doubt("cut answer", row, repr("..." + bare[-30:])))
        if repeated := _repeated(bare[:_REPEATED_UP_TO]):
            self.doubts.append(Doubt("repetition", row, repr(repeated[:40])))

    def _pair(self, row: int, question: str, answer: str, system: str) -> int:
        asked, answered = _hash(system + "\0" + _normal(question)), _hash(_normal(answer))
        if _normal(question) == _normal(answer):
            self.doubts.append(Doubt("copied question", row))
        number = self._questions.number(asked)
        if number == len(self._answers):
            self._question_rows.append(row)
            self._answers.append(answered)
        else:
            same, first_row = self._answers[number] == answered, self._question_rows[number]
            self.doubts.append(
                Doubt("duplicate" if same else "contradiction", row, f"{'of' if same else 'to'} {first_row}")
            )
        return _hash(_normal(question))


def _frequent(values: array[int], least: int) -> Iterator[tuple[int, int]]:
    """Where each value that occurs at least so often is first, and how often it does."""
    found = np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)
    ascending = np.sort(found)
    frequent = ascending[least - 1 :][ascending[least - 1 :] == ascending[: max(0, len(found) - least + 1)]]
    places = np.flatnonzero(np.isin(found, frequent)) if len(frequent) else frequent
    _, first, counts = np.unique(found[places], return_index=True, return_counts=True)
    yield from zip(places[first].tolist(), counts.tolist(), strict=True)


def _script(text: str) -> str:
    """Give the script that most letters of a text are of, "" for none."""
    if text.isascii():
        return _LATIN if any(map(str.isalpha, text)) else ""
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in _SCRIPTS})
    script, n = counts.most_common(1)[0]
    return script if n else ""


def _repeated(text: str) -> str:
    """Give the first phrase that a text repeats over and over, "" for none.

    The pattern alone takes long. Where a phrase is repeated, its next characters occur once more a period later: that
    is looked up at so many places that one of them lies in any repetition.
    """
    n = _LEAST_PERIOD
    for at in range(0, len(text) - n, n * (_REPETITIONS - 2)):
        if text.find(text[at : at + n], at + n, at + _LONGEST_PERIOD + n) >= 0:
            around = _REPETITIONS * _LONGEST_PERIOD
            if found := _REPEATED.search(text, max(0, at - around), at + around):
                return found[1]
    return ""


def _normal(text: str) -> str:
    """Case, white space and closing punctuation make no other question."""
    return " ".join(text.split()).rstrip(" .?!").casefold()


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
