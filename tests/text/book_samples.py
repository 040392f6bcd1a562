"""Books in the shapes that Project Gutenberg gave them over the years; all sentences are our own."""

import textwrap

PARAGRAPHS = [
    "The old pump behind the dairy had been out of order since the first week of spring, and nobody in the village "
    "could say with any certainty who was meant to mend it, though everybody had an opinion on the matter.",
    "Every morning the baker's daughter carried two pails past it to the brook, and every evening she carried them "
    "back again, until at last she grew so tired of the walk that she went and borrowed a wrench from the smith.",
    "It was not a large wrench, nor a particularly good one; the smith had lent the better of the two to the miller in "
    "autumn, and the miller was a man who returned things slowly and complained about them when he did.",
    "She took the handle off first, and laid every screw in a row upon a flat stone, so that she would be able to put "
    "them back in the order in which they had come out, which is more than most people think of doing.",
    "Beneath the second plate she found a nest of dry leaves and a single brass button. The leaves she threw away. The "
    "button she kept, and it lay on the sill of her window for many years after the pump ran again.",
]

VERSE = """\
     The water ran beneath the stone,
       And no one heard it sing;
     It went its winding way alone
       Until the end of spring."""

CHAPTERS = ["The Broken Pump", "The Borrowed Wrench", "A Brass Button"]


def wrapped(text: str, width: int = 72) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)


def body(width: int = 72) -> str:
    """Two chapters of wrapped paragraphs, with a verse."""
    p = [wrapped(paragraph, width) for paragraph in PARAGRAPHS]
    first = "\n\n".join(["CHAPTER I.\nThe Broken Pump", "", p[0], p[1], VERSE, p[2]])
    return first + "\n\n\n\n\n" + "\n\n".join(["CHAPTER II.\nThe Borrowed Wrench", "", p[3], p[4]])


def clean_body() -> str:
    """What is to be left of :func:`body`."""
    p = PARAGRAPHS
    return (
        f"CHAPTER I.\nThe Broken Pump\n\n\n{p[0]}\n\n{p[1]}\n\n{VERSE}\n\n{p[2]}\n\n\n"
        f"CHAPTER II.\nThe Borrowed Wrench\n\n\n{p[3]}\n\n{p[4]}\n"
    )


LICENCE = "\n\n".join(
    [
        f"Section {n}. " + wrapped("A licence says at some length what may be done with a file and what may not.")
        for n in range(20)
    ]
)

MODERN_HEAD = """\
The Project Gutenberg eBook of The Village Pump

This ebook is for the use of anyone anywhere at no cost.

Title: The Village Pump

Author: A. N. Author

Release date: May 1, 2020 [eBook #99999]

Language: English

Credits: Somebody Kind
"""

SMALL_PRINT_HEAD = """\
**The Project Gutenberg Etext of The Village Pump, by A. N. Author**

Please take a look at the important information in this header.

***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN ETEXTS**START***
Why is this "Small Print!" statement here? You know: lawyers.

*BEFORE!* YOU USE OR READ THIS ETEXT
By using it you say that you have read this statement.

*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*
"""


def modern(text: str, *, star: str = "*** ", the: str = "THE", title: str = "THE VILLAGE PUMP") -> str:
    return (
        f"{MODERN_HEAD}\n{star}START OF {the} PROJECT GUTENBERG EBOOK {title} ***\n\n\n\n{text}\n\n\n"
        f"{star}END OF {the} PROJECT GUTENBERG EBOOK {title} ***\n\n{LICENCE}\n"
    )


def small_print(text: str) -> str:
    return (
        f"{SMALL_PRINT_HEAD}\n\nThis etext was prepared by Somebody Kind.\n\n\n\n{text}\n\n\n"
        "End of the Project Gutenberg Etext of The Village Pump\n"
    )


BODY_PARTS = [
    *map(wrapped, PARAGRAPHS),
    VERSE,
    MODERN_HEAD,
    SMALL_PRINT_HEAD,
    "*** START OF THE PROJECT GUTENBERG EBOOK PUMP ***",
    "*** END OF THE PROJECT GUTENBERG EBOOK PUMP ***",
    "*** START: FULL LICENSE ***",
    "End of Project Gutenberg's Pump",
    "Produced by Somebody Kind",
    "CONTENTS",
    "LIST OF ILLUSTRATIONS",
    "CHAPTER I.\nThe Broken Pump",
    " CHAPTER II. The Borrowed Wrench . . . 12",
    "[Illustration: a pump\n\nand a pail]",
    "[Illustration",
    "[Transcriber's Note: [sic] is ours.]",
    "TRANSCRIBER'S NOTES",
    "[Pg 12]",
    "{xiv}",
    "- a pail\n- a wrench",
    "Tool        Owner\nwrench      smith",
    "```\ncode\n```",
    "# Notes\n\n> quoted",
    "an extraordi-\nnary day",
]
"""Pieces to put texts together from."""
