"""What holds for cleaning any text: nothing is lost without a record, nothing is invented, nothing takes for ever."""

import time
from collections import Counter

import pytest
from book_samples import BODY_PARTS
from hypothesis import given, settings
from hypothesis import strategies as st

from ggtune.text.clean import clean_text

TEXTS = st.lists(
    st.one_of(st.sampled_from(BODY_PARTS), st.text(alphabet="ab.-–[]{}*|\t \u00a0\u00ad1I", max_size=90)), max_size=14
).flatmap(
    lambda parts: st.lists(
        st.sampled_from(["\n", "\n\n", "\n\n\n\n", " "]), min_size=len(parts), max_size=len(parts)
    ).map(lambda gaps: "".join(part + gap for part, gap in zip(parts, gaps, strict=True)))
)


def letters(text: str) -> "Counter[str]":
    return Counter(character for character in text if character.isalnum())


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_every_letter_is_kept_or_recorded(text: str) -> None:
    cleaned = clean_text(text, keep={"encoding"})
    assert letters(cleaned.text) + letters("".join(passage.text for passage in cleaned.removed)) == letters(text)
    # in its order, too
    rest = iter(text)
    assert all(character in rest for character in cleaned.text if character.isalnum())


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_recorded_passages_stand_where_they_are_said_to(text: str) -> None:
    lines = text.split("\n")
    for passage in clean_text(text, keep={"encoding"}).removed:
        assert lines[passage.line - 1 : passage.line - 1 + passage.n_lines]
        # behind a mark of several lines that ends within a line, the line counts at which the mark starts
        assert any(passage.text.split()[0] in line for line in lines[passage.line - 1 : passage.line + 3])


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * 60_000 + "b",
        "." * 60_000,
        "CONTENTS\n\n" + "." * 60_000 + "x\n\nB . . 2",
        "[" * 3000 + "\n" + "[Illustration " * 300,
        "{" * 60_000,
        "- " * 30_000 + "x",
        "*** " * 20_000,
        "word-\n" * 10_000,
        "a\n\n" * 20_000,
        "Contents\n\n" * 3000,
        "Transcriber's Note\n\n" * 3000,
        ("word " * 13 + "\n") * 5000,
    ],
    ids=range(12),
)
def test_no_text_takes_for_ever(text: str) -> None:
    began = time.process_time()
    clean_text(text)
    assert time.process_time() - began < 20
