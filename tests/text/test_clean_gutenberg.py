import pytest
from book_samples import LICENCE, MODERN_HEAD, PARAGRAPHS, body, clean_body, modern, small_print, wrapped

from ggtune.text.clean import clean_text

WRAPPED_TITLE = "THE VILLAGE PUMP, BEING A TRUE AND FULL ACCOUNT OF ITS MENDING\nBY THE BAKER'S DAUGHTER"


@pytest.mark.parametrize(
    "book",
    [
        modern(body()),
        modern(body(), the="THIS"),
        modern(body(), star="***"),
        modern(body(), title=WRAPPED_TITLE),
        small_print(body()),
        modern(
            f"Produced by Somebody Kind and the Online Distributed\nProofreading Team at https://www.pgdp.net\n\n\n{body()}"
        ),
        modern(f"Transcribed from the 1888 edition by Somebody Kind\n\n\n{body()}"),
        modern(f"{body()}\n\n\nEnd of Project Gutenberg's The Village Pump, by A. N. Author"),
        # an old header inside of a new one
        modern(small_print(body())),
        # the licence in front
        f"{MODERN_HEAD}\n*** START: FULL LICENSE ***\n{LICENCE}\n*** END: FULL LICENSE ***\n\n{body()}\n\n"
        "End of Project Gutenberg's Pump\n",
        body() + f"\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE VILLAGE PUMP ***\n\n{LICENCE}",
    ],
    ids=[
        "modern",
        "this",
        "tight",
        "wrapped",
        "small print",
        "credits",
        "edition",
        "soft end",
        "both",
        "licence",
        "footer",
    ],
)
def test_a_book_is_all_that_is_left(book: str) -> None:
    cleaned = clean_text(book)
    assert cleaned.text == clean_body()
    assert cleaned.doubts == ()


def test_several_books_in_one_file() -> None:
    books = modern(wrapped(PARAGRAPHS[0])) + "\n\n" + modern(wrapped(PARAGRAPHS[1]))
    assert clean_text(books).text == f"{PARAGRAPHS[0]}\n\n\n{PARAGRAPHS[1]}\n"


def test_a_small_print_at_the_end_ends_the_book() -> None:
    text = f"{body()}\n\n\n***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***\n{LICENCE}\n"
    assert clean_text(text).text == clean_body()


def test_a_sentence_about_the_end_of_project_gutenberg_ends_nothing() -> None:
    said = "End of Project Gutenberg, the sign on the door said, and the room behind it was dark."
    text = "\n\n".join([said, *PARAGRAPHS * 4])
    assert clean_text(text).text == f"{text}\n"


def test_a_gutenberg_text_without_markers_is_left_and_said() -> None:
    text = f"{MODERN_HEAD}\n\n{body()}"
    cleaned = clean_text(text)
    assert "Author: A. N. Author" in cleaned.text
    assert "none of the known markers" in cleaned.doubts[0]


def test_a_text_that_is_no_gutenberg_book_keeps_its_credits() -> None:
    text = "Produced by hand in a small workshop.\n\nPrepared by the cook.\n"
    assert clean_text(text).text == text


def test_what_was_taken_out_is_recorded_with_its_lines() -> None:
    book = modern(body())
    cleaned = clean_text(book)
    header, footer = cleaned.removed
    lines = book.split("\n")
    for passage in (header, footer):
        assert passage.kind == "gutenberg"
        assert "\n".join(lines[passage.line - 1 : passage.line - 1 + passage.n_lines]) == passage.text
    n_lines, n_characters = cleaned.amounts()["gutenberg"]
    assert n_lines == header.n_lines + footer.n_lines
    assert n_characters == len(header.text) + len(footer.text)


def test_keep_gutenberg() -> None:
    cleaned = clean_text(modern(body()), keep={"gutenberg"})
    assert "START OF THE PROJECT GUTENBERG" in cleaned.text
    assert cleaned.removed == ()
