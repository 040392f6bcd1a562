"""What can be told of an answer's text without a model: its numbers, names, terms, loops and script."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation

from ggtune.scores.repetition import repetition
from ggtune.scores.words import has_no_spaces
from ggtune.scores.words import words as plain_words

_WORD = re.compile(r"[^\W_]+(?:[’'\-][^\W_]+)*")
# digits with separators: "1,000", "3.14", "6,02", "1e-5", "15mL"; none inside of a word, such as H2O
_NUMBER = re.compile(r"(?<![\w.,])[+\-−]?\d+(?:[.,]\d+)*(?:[eE][+\-]?\d+)?")
_THOUSANDS = (re.compile(r"[+\-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?"), re.compile(r"[+\-]?\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?"))
_NUMBER_WORDS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        map(Decimal, range(13)),
        strict=True,
    )
)
_BEFORE_WORDS = " \"'“‘([*-•"  # what may stand between the end of a sentence and the next one
_SENTENCE_ENDS = ".!?:;\n"
_FEW_WORDS = 4  # a reference of so few words is all content
_STEM = 6  # characters of a word that count, so that endings make no other term
_SHORT = 3  # a word of so few characters has no endings
_COMMON = {  # English words of four letters and more that say nothing of a topic
    *("about", "also", "because", "been", "does", "from", "have", "into", "likely", "many", "more", "most", "much"),
    *("only", "other", "over", "some", "such", "than", "that", "their", "them", "then", "there", "these", "they"),
    *("this", "those", "under", "used", "uses", "very", "were", "what", "when", "where", "which", "while", "will"),
    *("with", "would", "your"),
}
SCRIPTS = (
    ("Latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
    ("Cyrillic", re.compile(r"[\u0400-\u04ff]")),
    ("Greek", re.compile(r"[\u0370-\u03ff]")),
    ("Arabic", re.compile(r"[\u0600-\u06ff]")),
    ("Hebrew", re.compile(r"[\u0590-\u05ff]")),
    ("Chinese or Japanese", re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")),
    ("Korean", re.compile(r"[\uac00-\ud7af]")),
    ("Devanagari", re.compile(r"[\u0900-\u097f]")),
    ("Thai", re.compile(r"[\u0e00-\u0e7f]")),
)
_LEAST_REPEATS = 3
_LONGEST_PERIOD = 300  # characters of a repeated phrase
_LEAST_LOOP = 24  # characters of all its repetitions
_LOOKED_AT = 4 * _LONGEST_PERIOD
_FEWEST_WORDS = 20  # of a text whose repetition says something
_REPEATED_SHARE = 0.5


def words(text: str) -> list[str]:
    """The words in lower case, numbers in one spelling; each character of a script without spaces is a word."""
    text = _NUMBER.sub(lambda match: " ".join(f"{value:f}" for value in _values(match[0])), text)
    return [f"{_NUMBER_WORDS[word]}" if word in _NUMBER_WORDS else word for word in plain_words(text)]


def terms(text: str, stem: int | None = _STEM) -> set[str]:
    """What a text is about: its longer words without their endings, its numbers, pairs of ideographs."""
    found = set()
    before = ""
    for word in words(text):
        if has_no_spaces(word):
            found.add(before + word)
            before = word
            continue
        before = ""
        if any(map(str.isdigit, word)):
            found.add(word)
        elif len(word) > _SHORT and word not in _COMMON:
            found.add(word[:stem])
    return found


def numbers(text: str) -> set[Decimal]:
    """The numbers of a text, small ones in English words too."""
    spelled = (match[0].casefold() for match in _WORD.finditer(text))
    found = {_NUMBER_WORDS[word] for word in spelled if word in _NUMBER_WORDS}
    for match in _NUMBER.finditer(text):
        found.update(_values(match[0]))
    return found


def _values(written: str) -> Iterator[Decimal]:
    written = written.replace("−", "-")
    with_commas, with_points = _THOUSANDS
    if with_commas.fullmatch(written):
        written = written.replace(",", "")
    elif with_points.fullmatch(written):
        written = written.replace(".", "")
    try:
        yield Decimal(written.replace(",", ".")).normalize()
    except InvalidOperation:  # a date or a version: several points
        yield from (Decimal(part) for part in re.split(r"[.,]", written.lstrip("+-")) if part.isdecimal())


def entities(text: str) -> set[str]:
    """Names, formulas and abbreviations in lower case: words with capitals or digits in them.

    The first word of a sentence counts where it has more than its first letter in capitals, or where the text is of so
    few words that each of them is content.
    """
    matches = list(_WORD.finditer(text))
    short = len(matches) <= _FEW_WORDS
    found = set()
    for match in matches:
        word = match[0]
        has_letter = any(map(str.isalpha, word))
        if not has_letter or has_no_spaces(word):
            continue
        inner = any(c.isupper() for c in word[1:]) or any(map(str.isdigit, word))
        before = text[: match.start()].rstrip(_BEFORE_WORDS)
        begins = not before or before[-1] in _SENTENCE_ENDS
        names = word[0].isupper() and not begins and len(word) > 1
        content = short and len(word) > _SHORT and word.casefold() not in _COMMON
        if inner or names or content:
            found.add(word.casefold())
    return found


def has_word(text: str, wanted: str) -> bool:
    """Whether a word occurs, in any case; a longer one with any ending."""
    stem = wanted.casefold()[:_STEM]
    found = (match[0].casefold() for match in _WORD.finditer(text))
    return any(word.startswith(stem) if len(stem) > _SHORT else word == stem for word in found)


def loops(text: str) -> bool:
    """Whether a text ends in the same phrase over and over, or is mostly repetition.

    Numbers count as equal: a list that goes on with the same item is a loop.
    """
    tail = re.sub(r"\d+", "0", " ".join(text.split()))[-_LOOKED_AT:]
    for period in range(1, min(_LONGEST_PERIOD, len(tail) // _LEAST_REPEATS) + 1):
        n_repeats = max(_LEAST_REPEATS, -(-_LEAST_LOOP // period))
        length = period * n_repeats
        if length <= len(tail) and tail[-length:] == tail[-period:] * n_repeats:
            return True
    return len(plain_words(text)) >= _FEWEST_WORDS and repetition(text) > _REPEATED_SHARE


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of two lists of words: the harmonic mean of the shares that they have in common."""
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other)) if one or other else 1.0


def script(text: str) -> str:
    """The script that most letters are of, "" for none."""
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in SCRIPTS})
    name, n = counts.most_common(1)[0]
    return name if n else ""
