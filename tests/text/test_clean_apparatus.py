import pytest
from book_samples import CHAPTERS, PARAGRAPHS, body, clean_body, wrapped

from ggtune.text.clean import KINDS, clean_text

A, B, C = PARAGRAPHS[:3]


@pytest.mark.parametrize(
    "mark",
    [
        "[Illustration]",
        "[Illustration: The pump, seen from the dairy]",
        "[Illustration: The pump [from a sketch], and\nthe brook behind it]",
        "[Illustration:\n\n_The smith lends his wrench._\n\n]",
        "[Illus. The pump]",
        "[Transcriber's Note: A comma was put here.]",
        "[Transcriber’s Note: A comma was put here,\nand another one below.]",
        "[Pg 14]",
    ],
)
def test_marks_between_paragraphs_go(mark: str) -> None:
    cleaned = clean_text(f"{wrapped(A)}\n\n{mark}\n\n{wrapped(B)}\n")
    assert cleaned.text == f"{A}\n\n{B}\n"
    assert [passage.text for passage in cleaned.removed] == [mark]
    assert cleaned.removed[0].line == wrapped(A).count("\n") + 3


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("She went to the [Pg 14]brook.", "She went to the brook."),
        ("She went to the [Pg 14] brook.", "She went to the brook."),
        ("She went to the bro[Pg 14]ok.", "She went to the brook."),
        ("[Pg xiv] She went to the brook.", "She went to the brook."),
        ("She went to the brook. {14}", "She went to the brook."),
        ("She [Illustration] went to the brook.", "She went to the brook."),
        ("She read [1] and {x} and [p] there.", "She read [1] and {x} and [p] there."),
        ("[Illustrations of it were rare.] So she went.", "[Illustrations of it were rare.] So she went."),
    ],
)
def test_marks_inside_of_lines_go(line: str, left: str) -> None:
    assert clean_text(line).text == f"{left}\n"


def test_a_bracket_that_is_never_closed_stays_and_is_said() -> None:
    text = f"[Illustration: the pump\n\n{A}\n"
    cleaned = clean_text(text)
    assert cleaned.text == text
    assert "not closed nearby, and were left: 1" in cleaned.doubts[0]


BOX = """\
+------------------------------------------+
| Transcriber's Note:                      |
|                                          |
| Spelling was left as it is.              |
+------------------------------------------+"""


@pytest.mark.parametrize(
    "note",
    [
        "Transcriber's Note: spelling was left as it is.",
        "TRANSCRIBER'S NOTES\n\nSpelling was left as it is.\n\nCommas, too.",
        "Anmerkungen zur Transkription\n\nDie Schreibung blieb, wie sie war.",
        BOX,
    ],
)
def test_notes_at_the_start_and_the_end_go(note: str) -> None:
    cleaned = clean_text(f"{note}\n\n\n\n{body()}\n\n\n\n{note}\n")
    assert cleaned.text == clean_body()
    assert set(cleaned.amounts()) == {"notes"}


ENTRIES = [f"CHAPTER {number}. {title}" for number, title in zip(("I", "II", "III"), CHAPTERS, strict=True)]

SUMMARY = wrapped(
    "A pump--nobody mends it--a long walk to the brook--a smith who lends one of his wrenches--and the end"
)


@pytest.mark.parametrize(
    "contents",
    [
        "CONTENTS\n\n" + "\n".join(f" {entry}" for entry in ENTRIES),
        "Contents\n\n" + "\n\n".join(ENTRIES),
        "TABLE OF CONTENTS\n\n\n                                      PAGE\n"
        + "\n".join(f"{entry} . . . . {i * 14}" for i, entry in enumerate(ENTRIES, 1)),
        "INHALT.\n\n" + "\n".join(f"{title}     {7 + i}" for i, title in enumerate(CHAPTERS)),
        # summaries, as of long novels
        "CONTENTS\n\n" + "\n\n".join(f"{entry}\n{SUMMARY}" for entry in ENTRIES),
        "CONTENTS\n\n"
        + "\n".join(ENTRIES)
        + "\n\n\nLIST OF ILLUSTRATIONS\n\nThe pump    3\nThe wrench    19\nThe button    40",
    ],
    ids=["indented", "blocks", "pages", "german", "summaries", "illustrations"],
)
def test_contents_go(contents: str) -> None:
    cleaned = clean_text(f"THE VILLAGE PUMP\n\n\n\n{contents}\n\n\n\n\n{body()}\n")
    assert cleaned.text == f"THE VILLAGE PUMP\n\n\n{clean_body()}"
    assert set(cleaned.amounts()) == {"contents"}


def test_contents_at_the_end_go() -> None:
    table = "TABLE DES MATIÈRES\n\n" + "\n".join(f"{title}     {7 + i}" for i, title in enumerate(CHAPTERS))
    assert clean_text(f"{body()}\n\n\n\n{table}\n").text == clean_body()


def test_verse_behind_contents_stays_whole() -> None:
    titles = ["To a Pump", "To a Pail", "To a Wrench"]
    stanzas = "\n\n".join(["O pump, do run!", "The water's gone,", "And so is fun."] * 4)
    poems = "\n\n\n\n".join(f"{title.upper()}\n\n{stanzas}" for title in titles)
    contents = "CONTENTS\n\n                    PAGE\n" + "\n".join(
        f"{title}      {n}" for n, title in enumerate(titles, 7)
    )
    cleaned = clean_text(f"{contents}\n\n\n\n{poems}\n\n\n\n{wrapped(A)}\n")
    assert cleaned.text == f"{poems}\n\n\n\n{A}\n".replace("\n\n\n\n", "\n\n\n")


def test_contents_that_name_a_title_twice() -> None:
    contents = "CONTENTS\n\nPreface    3\n\nThe Pump    5\n\nPreface    40\n\nThe Pail    44\n\nThe Wrench    61"
    text = clean_text(f"{contents}\n\n\n\nPREFACE\n\n{wrapped(A)}\n").text
    assert text == f"PREFACE\n\n{A}\n"


def test_a_note_before_the_last_chapter_takes_nothing_else() -> None:
    note = "Transcriber's Note: a page was missing here."
    text = "\n\n".join([body()] * 3)
    cleaned = clean_text(f"{text}\n\n{note}\n\n\n\nCHAPTER III.\nA Brass Button\n\n{wrapped(A)}\n")
    assert [passage.text for passage in cleaned.removed] == [note]
    assert cleaned.text.endswith(f"A Brass Button\n\n{A}\n")


@pytest.mark.parametrize("heading", ["CONTENTS", "Illustrations", "Index"])
def test_a_chapter_with_such_a_name_stays(heading: str) -> None:
    text = f"{heading}\n\n{A}\n\n{B}\n"
    assert clean_text(text).text == text


def test_a_title_that_the_contents_do_not_name_stays() -> None:
    table = "CONTENTS\n\n" + "\n".join(f"{entry}  {i}" for i, entry in enumerate(ENTRIES, 3))
    assert clean_text(f"{table}\n\n\n\nHOW IT ALL BEGAN\n\n{wrapped(A)}\n").text == f"HOW IT ALL BEGAN\n\n{A}\n"


def test_each_kind_can_be_kept() -> None:
    contents = "CONTENTS\n\n" + "\n".join(ENTRIES)
    book = f"{contents}\n\n\n\n{body()}\n\n[Illustration]\n\n[Pg 3]\n\nschÃ¶n und  gut\n\n[Transcriber's Note: none]\n"
    seen = {
        "contents": "CHAPTER III.",
        "illustrations": "[Illustration]",
        "pages": "[Pg 3]",
        "notes": "[Transcriber's Note: none]",
        "encoding": "schÃ¶n",
        "wraps": "since the first week\nof spring",
        "whitespace": "und  gut",
    }
    plain = clean_text(book).text
    for kind, text in seen.items():
        assert text not in plain, kind
        assert text in clean_text(book, keep={kind}).text, kind
    untouched = clean_text(book, keep=KINDS)
    assert untouched.text == book
    assert (untouched.removed, untouched.mended_lines, untouched.joined_lines, untouched.spaces) == ((), 0, 0, 0)
    assert A in plain
    assert C in plain
