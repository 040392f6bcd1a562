"""What looks wrong in training data: rows that are whole, and yet hardly what anybody wants to train on."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

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

_NAMES = tuple(KINDS)
_NUMBERS = {kind: number for number, kind in enumerate(_NAMES)}
_LIKE = {"contradiction": "to"}  # the word in front of the other row

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
# a call or a sum of cells; what Excel and LibreOffice write where one can't be computed
_FORMULA = re.compile(
    r"^=(?:[A-Z][A-Z0-9.]*\(.*\)[^a-z]*|[^a-z]*\$?[A-Z]{1,3}\$?[0-9]+[^a-z]*)$"
    r"|^#(?:REF!|NAME\?|VALUE!|DIV/0!|N/A|NULL!|NUM!|SPILL!|CALC!)$|^Err:5\d\d$",
    re.DOTALL,
)
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
_MOST_TEXTS = 10_000  # kept of each kind of doubt: of more the rows alone
_MOST_SCRIPT_ROWS = 100_000  # kept of each script: one with more is hardly the other one
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


class Doubt(NamedTuple):
    """Something about a row; ``kind`` is one of :data:`KINDS`."""

    kind: str
    row: int  # as :class:`LoadReport` numbers them
    text: str = ""  # which row it is like, or what was found
    where: str = ""  # the row for a reader, where it is none of the data themselves

    def __str__(self) -> str:
        return f"{self.kind}{': ' + self.text if self.text else ''}"


class Doubts(Sequence[Doubt]):
    """Doubts about rows in a few bytes each: there may be one about every row of very large data."""

    def __init__(self, name: Callable[[int], str] = str) -> None:
        """``name`` names a row that another one is like."""
        self._name = name
        self._kinds, self._rows, self._others = array("B"), array("I"), array("I")
        self._texts: dict[int, str] = {}  # of the first ones of each kind
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, row: int, text: str = "", other: int = 0) -> None:
        """Add one; ``text`` is what was found, or the word in front of the row ``other``."""
        self.counts[kind] += 1
        if text and not other and self.counts[kind] <= _MOST_TEXTS:
            self._texts[len(self._kinds)] = text
        self._kinds.append(_NUMBERS[kind])
        self._rows.append(row)
        self._others.append(other)

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> Doubt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Doubt]: ...
    def __getitem__(self, index: int | slice) -> Doubt | list[Doubt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        kind, other = _NAMES[self._kinds[i]], self._others[i]
        text = f"{_LIKE.get(kind, 'of')} {self._name(other)}" if other else self._texts.get(i, "")
        return Doubt(kind, self._rows[i], text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Doubts) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def kinds_from(self, begin: int) -> set[str]:
        """The kinds of those from the number ``begin`` on."""
        return {_NAMES[kind] for kind in self._kinds[begin:]}

    def pairs(self, kind: str) -> list[tuple[int, int]]:
        """The rows with a doubt of this kind, each with the row that it is like."""
        number = _NUMBERS[kind]
        found = zip(self._kinds, self._rows, self._others, strict=True)
        return [(row, other) for of_kind, row, other in found if of_kind == number]

    def in_order(self) -> Doubts:
        """Give them in the order of their rows."""
        found = Doubts(self._name)
        found.counts = self.counts
        order: Any = np.argsort(np.frombuffer(self._rows, np.uint32), kind="stable") if self._rows else []
        for at, i in enumerate(order):
            found._kinds.append(self._kinds[i])
            found._rows.append(self._rows[i])
            found._others.append(self._others[i])
            if (text := self._texts.get(int(i))) is not None:
                found._texts[at] = text
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        columns = {"kinds": self._kinds, "rows": self._rows, "others": self._others}
        return {**{key: values.tolist() for key, values in columns.items()}, "texts": list(self._texts.items())}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], name: Callable[[int], str]) -> Doubts:
        """Undo :meth:`to_json`."""
        found = cls(name)
        found._kinds, found._rows = array("B", values["kinds"]), array("I", values["rows"])
        found._others, found._texts = array("I", values["others"]), dict(map(tuple, values["texts"]))
        found.counts = Counter(_NAMES[kind] for kind in found._kinds)
        return found


class NearDuplicates:
    """Finds texts that share most of their runs of three words (MinHash by datasketch, locality-sensitive hashing).

    Of each text a hash of each band of its sketch is kept: about 300 bytes. Raises :class:`GgtuneError` where
    datasketch is missing.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """``threshold``: Jaccard similarity of the sets of runs."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise GgtuneError("Near duplicates need datasketch: pip install 'ggtune[quality]'.") from error
        bands = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._make, self._n_rows = MinHash, bands.r
        self._bands = [(KeyTable(), array("I")) for _ in range(bands.b)]  # the first row of each key

    def add(self, row: int, text: str) -> int | None:
        """Remember a text; gives the first row of those that are nearly the same."""
        words = text.casefold().split()
        runs = {" ".join(words[i : i + 3]).encode() for i in range(max(1, len(words) - 2))}
        sketch = self._make(num_perm=_PERMUTATIONS)
        sketch.update_batch(runs)
        values, like = sketch.hashvalues, []
        for band, (table, rows) in enumerate(self._bands):
            number = table.number(_hash_bytes(values[band * self._n_rows : (band + 1) * self._n_rows].tobytes()))
            if number == len(rows):
                rows.append(row)
            else:
                like.append(rows[number])
        return min(like, default=None)


class Inspector:
    """Looks at conversations and texts one after another; of each it keeps a few hashes."""

    def __init__(self, near: NearDuplicates | None = None, name: Callable[[int], str] = str) -> None:
        """``name`` names a row in a text."""
        self.near = near
        self.doubts = Doubts(name)
        self._wholes = KeyTable()  # texts, and conversations of several turns
        self._whole_rows = array("I")  # their first rows
        self._questions = KeyTable()
        self._question_rows = array("I")  # their first rows
        self._answers = array("I")  # those of the first rows, half of a hash of each
        self._scripts: dict[str, array[int]] = {}  # the first rows of each
        self._n_of_script: Counter[str] = Counter()

    def add(self, item: Conversation | Document, row: int | None = None) -> tuple[int, set[str]]:
        """Look at one, of this ``row`` or its own.

        Gives a hash of what it asks (the same for what must not be apart), and the kinds of doubts.
        """
        row = item.row if row is None else row
        n_before = len(self.doubts)
        group = self._document(row, item) if isinstance(item, Document) else self._conversation(row, item)
        if self.near is not None and "duplicate" not in self.doubts.kinds_from(n_before):
            texts = [item.text] if isinstance(item, Document) else [turn.text for turn in item.turns]
            like = self.near.add(row, "\n".join(texts))
            if like is not None:
                self.doubts.add("near duplicate", row, other=like)
        return group, self.doubts.kinds_from(n_before)

    def add_rendered(self, row: int, prompt: str, answer: str) -> tuple[int, set[str]]:
        """Look at a text that has a template's tags already."""
        n_before = len(self.doubts)
        self._texts(row, [prompt, answer], tags=False)
        self._answer(row, answer)
        group = self._pair(row, prompt, answer, "")
        return group, self.doubts.kinds_from(n_before)

    def _document(self, row: int, item: Document) -> int:
        self._texts(row, [item.text])
        self._no_value(row, item.text)
        return self._whole(row, _hash(_normal(item.text)))

    def _conversation(self, row: int, item: Conversation) -> int:
        asked = [turn.text for turn in item.turns if turn.role == "user"]
        answers = [turn.text for turn in item.turns if turn.role == "assistant" and turn.text]
        self._texts(row, [turn.text for turn in item.turns])
        if item.turns[-1].role != "assistant":
            self.doubts.add("unanswered", row)
        for turn in item.turns:
            if turn.role in ("system", "user"):  # any of a spreadsheet's cells may hold a formula
                self._no_value(row, turn.text)
        for answer in answers:
            self._answer(row, answer)
        fields = [repr(turn.fields) for turn in item.turns if turn.fields]
        if len(asked) == 1 and len(answers) == 1 and not fields:
            return self._pair(row, asked[0], answers[0], item.system or "")
        whole = self._whole(row, _hash("\0".join([*(_normal(turn.text) for turn in item.turns), *fields])))
        return _hash(_normal(asked[0])) if asked else whole

    def _whole(self, row: int, whole: int) -> int:
        number = self._wholes.number(whole)
        if number == len(self._whole_rows):
            self._whole_rows.append(row)
        else:
            self.doubts.add("duplicate", row, other=self._whole_rows[number])
        return whole

    def finish(self) -> Doubts:
        """Give all doubts, with those that need all rows, in order of the rows."""
        for number, n_questions in _frequent(self._answers, _SAME_ANSWERS):
            self.doubts.add("same answer", self._question_rows[number], f"to {n_questions} questions")
        total = sum(self._n_of_script.values())
        for script, rows in self._scripts.items():
            if self._n_of_script[script] < 0.05 * total:
                for row in rows:
                    self.doubts.add("other script", row, script)
        return self.doubts.in_order()

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
                self.doubts.add(kind, row, repr(found[0][:40]))
        if script := _script(text[:2000]):
            self._n_of_script[script] += 1
            rows = self._scripts.setdefault(script, array("I"))
            if len(rows) < _MOST_SCRIPT_ROWS:
                rows.append(row)

    def _no_value(self, row: int, text: str) -> bool:
        """Whether a text is a formula or a placeholder."""
        bare = text.strip()
        kind = "formula" if _FORMULA.match(bare) else "placeholder" if _PLACEHOLDER.match(bare) else ""
        if kind:
            self.doubts.add(kind, row, repr(bare[:40]))
        return bool(kind)

    def _answer(self, row: int, answer: str) -> None:
        bare = answer.strip()
        if not self._no_value(row, bare) and len(bare) <= SHORT_ANSWER and not bare.isdigit():
            self.doubts.add("short answer", row, repr(bare))
        if found := _CHATBOT.search(bare):
            self.doubts.add("chatbot", row, repr(found[0]))
        if len(bare) >= _CUT_FROM and not _ENDED.search(bare):
            self.doubts.add("cut answer", row, repr("..." + bare[-30:]))
        if repeated := _repeated(bare[:_REPEATED_UP_TO]):
            self.doubts.add("repetition", row, repr(repeated[:40]))

    def _pair(self, row: int, question: str, answer: str, system: str) -> int:
        question, answer = _normal(question), _normal(answer)
        asked, answered = _hash(system + "\0" + question), _hash(answer) & 0xFFFFFFFF
        if question == answer:
            self.doubts.add("copied question", row)
        number = self._questions.number(asked)
        if number == len(self._answers):
            self._question_rows.append(row)
            self._answers.append(answered)
        else:
            same = self._answers[number] == answered
            self.doubts.add("duplicate" if same else "contradiction", row, other=self._question_rows[number])
        return _hash(question)


def _frequent(values: array[int], least: int) -> Iterator[tuple[int, int]]:
    """Where each value that occurs at least so often is first, and how often it does."""
    found = np.frombuffer(values, np.dtype(values.typecode)) if values else np.zeros(0, np.int64)
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
    return _hash_bytes(text.encode("utf-8", "surrogatepass"))


def _hash_bytes(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
