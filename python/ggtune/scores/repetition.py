"""How much an answer repeats itself."""

from ggtune.scores.words import words

_N = 4


def repetition(text: str) -> float:
    """Share of a text's runs of four words that have occurred in it before, 0 to 1.

    It is seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319), of words instead of tokens: 0 for fewer than five words.
    A character of a script without spaces counts as a word.
    """
    found = words(text)
    runs = [tuple(found[i : i + _N]) for i in range(len(found) - _N + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
