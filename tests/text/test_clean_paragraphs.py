import re

import pytest
from book_samples import PARAGRAPHS, VERSE, body, clean_body, modern, small_print, wrapped

from ggtune.text.clean import clean_text
from ggtune.text.document import Document
from ggtune.text.hyphens import Vocabulary
from ggtune.text.paragraphs import unwrap

CONTEXT = "\n\n".join(wrapped(paragraph) for paragraph in PARAGRAPHS)


def unwrapped(block: str) -> str:
    """A block as it comes out of a text that is wrapped at 72 characters."""
    text = clean_text(f"{CONTEXT}\n\n{block}\n\n{CONTEXT}\n").text
    plain = "\n\n".join(PARAGRAPHS)
    assert text.startswith(f"{plain}\n\n")
    assert text.endswith(f"\n\n{plain}\n")
    return text[len(plain) + 2 : -len(plain) - 3]


@pytest.mark.parametrize("width", [50, 66, 80, 100])
def test_paragraphs_of_any_width(width: int) -> None:
    assert clean_text(body(width)).text == clean_body()


LETTER = "Dear Anna,\nthe pump is broken.\nPlease send a smith.\nYours, Emil"
TABLE = "Tool        Owner      Lent to\nwrench      smith      miller\npail        baker      nobody"
LIST = "- a wrench\n- two pails\n- one brass button"
LONG_LINES = (
    "Behold the pump that stood beside the dairy all the winter long and ran,\n"
    "Though no man mended it, and no man knew by whom its pipes were laid and when,\n"
    "And no man asked, as long as there was water in the village, how it ran,\n"
    "Nor thanked the hand that oiled it, for the hand was never seen by any man."
)


@pytest.mark.parametrize(
    "block", [VERSE, LETTER, TABLE, LIST, LONG_LINES, "CHAPTER I.\nThe Broken Pump", "* * *", "A | B\nc | d"]
)
def test_what_is_no_running_text_keeps_its_lines(block: str) -> None:
    assert unwrapped(block) == block


def test_a_list_has_its_items_joined() -> None:
    first, second = PARAGRAPHS[:2]
    listed = "\n".join(f"{n}. " + wrapped(text).replace("\n", "\n   ") for n, text in enumerate((first, second), 1))
    assert unwrapped(listed) == f"1. {first}\n2. {second}"


def test_an_indented_quotation_is_joined_and_a_first_line_indent_goes() -> None:
    text = PARAGRAPHS[0]
    assert unwrapped("\n".join(f"    {line}" for line in wrapped(text, 66).split("\n"))) == text
    assert unwrapped("     " + wrapped(text)) == text


def test_paragraphs_that_only_an_indent_tells_apart() -> None:
    first, second = PARAGRAPHS[:2]
    assert unwrapped(f"  {wrapped(first)}\n  {wrapped(second)}") == f"{first}\n\n{second}"


def test_shouted_paragraphs_are_joined() -> None:
    text = PARAGRAPHS[0].upper()
    assert unwrapped(wrapped(text)) == text


def test_code_between_fences_stays() -> None:
    code = "```\nfor each pail in the list of pails that the baker's daughter carried home\nat night do print it\n```"
    assert unwrapped(code) == code


def test_a_text_of_long_lines_has_no_wraps() -> None:
    text = "\n".join([*PARAGRAPHS, "The pump costs", "three shillings.", "2 + 2 = 4"])
    assert clean_text(text).text == f"{text}\n"


def test_a_text_of_verse_alone_stays() -> None:
    verse = "\n\n".join([VERSE.replace("     ", "")] * 6)
    assert clean_text(verse).text == f"{verse}\n"


def test_chinese_lines_are_joined_without_spaces() -> None:
    sentence = "村口的水泵从春天起就坏了没有人知道应该由谁来修理它但是每个人都有自己的看法" * 4
    lines = [sentence[i : i + 50] for i in range(0, len(sentence), 50)]
    assert clean_text("\n".join(lines)).text == f"{sentence}\n"


@pytest.mark.parametrize(
    ("line", "following", "joined"),
    [
        ("she kept the knowl-", "edge of it", "she kept the knowledge of it"),  # as it is written elsewhere
        ("it was a well-", "known fact", "it was a well-known fact"),  # as it is written elsewhere
        ("she had a brass-", "button there", "she had a brass-button there"),  # two words of their own
        ("she had to cross-", "button it", "she had to cross-button it"),  # one of them a word
        ("it was extraordi-", "nary weather", "it was extraordinary weather"),  # no word of its own
        ("from the Anglo-", "Saxon of old", "from the Anglo-Saxon of old"),
        ("a two-", "and threefold thing", "a two- and threefold thing"),
        ("so it ran--", "and stopped", "so it ran--and stopped"),
        ("so it ran", "--and stopped", "so it ran--and stopped"),
        ("so it ran\u2014", "and stopped", "so it ran\u2014and stopped"),
        ("the ex\u00ad", "ample of it", "the example of it"),
        ("in 1914-", "1918 it ran", "in 1914- 1918 it ran"),
    ],
)
def test_hyphens_at_line_ends(line: str, following: str, joined: str) -> None:
    known = wrapped("There was knowledge in it. A well-known smith kept a brass lid and a button.", 72)
    pad = "x" * (72 - len(line))
    document = Document(f"{CONTEXT}\n\n{known}\n\n{pad} {line}\n{following}")
    unwrap(document, hyphens=True)
    assert document.lines[-1] == f"{pad} {joined}"


def test_a_text_that_divides_words_has_all_of_them_joined() -> None:
    text = "It can be under-\nstood. The under-\nstanding of it is under-\nstood by all who stand under it."
    assert clean_text(text).text.count("-") == 3  # too short to have a width
    vocabulary = Vocabulary([*text.split("\n"), "understood"])
    assert vocabulary.joined("under", "standing") == "understanding"
    assert vocabulary.joined("under", "Stand") == "under-Stand"


def test_a_heading_above_a_list_and_a_formula_within_a_text() -> None:
    first, second = PARAGRAPHS[:2]
    listed = "\n".join(f"- {wrapped(text)}" for text in (first, second))
    assert unwrapped(f"WHAT TO REMEMBER\n{listed}") == f"WHAT TO REMEMBER\n- {first}\n- {second}"
    for formula in ("a + b = c", "a + b + c + d + e + f + g + h + i + j + k = l + m"):
        assert unwrapped(f"{wrapped(first)}\n{formula}\n{wrapped(second)}") == f"{first}\n{formula}\n{second}"
    lead = "That is all that she could cancel, so that she multiplied the rest of the numbers to get this:"
    assert unwrapped(f"{wrapped(lead)}\na + b = c") == f"{lead}\na + b = c"


def test_a_number_at_the_start_of_a_broken_line_starts_no_item() -> None:
    text = f"{PARAGRAPHS[0][:-1]} in the year of the great flood, that is to say in 12. and not in 13. as it was said."
    broken = next(lines for width in range(50, 100) if re.search(r"\n1[23]\.", lines := wrapped(text, width)))
    assert clean_text(broken).text == f"{text}\n"


def test_hyphens_can_be_kept() -> None:
    text = f"{CONTEXT}\n\n{'x ' * 32}extraordi-\nnary weather\n"
    assert "extraordi-nary" in clean_text(text, keep={"hyphens"}).text
    cleaned = clean_text(text)
    assert "extraordinary" in cleaned.text
    assert cleaned.joined_words == 1


@pytest.mark.parametrize("text", [modern(body()), small_print(body(60)), CONTEXT + "\n\n" + LETTER + "\n\n" + TABLE])
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = clean_text(text).text
    assert clean_text(once).text == once


def test_white_space() -> None:
    text = "\n\n\nOne\u00a0word,  two \u2009 words. \n\n\n\n\n\tA\u200b line.\u202f\n\n"
    cleaned = clean_text(text)
    assert cleaned.text == "One word, two words.\n\n\n\tA line.\n"
    assert cleaned.spaces > 0
