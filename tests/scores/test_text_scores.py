"""Scores of single answers: SQuAD's rules, several references, scripts without spaces, the libraries' own numbers."""

import sys

import pytest
from rouge_score import rouge_scorer

from ggtune.errors import GgtuneError
from ggtune.extras import need
from ggtune.scores.metrics import METRICS
from ggtune.scores.repetition import repetition
from ggtune.scores.text import exact_match, f1, length_ratio, lengths, normalized_words, rouge_l
from ggtune.scores.words import is_mostly_other_script, words


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("The atomic number is 10.", "atomic number is 10", True),
        ("  An  Apple!", "apple", True),
        ("a theory", "the theory", True),
        ("theory", "ory", False),
        ("10.5", "105", True),  # punctuation is left out without a space, as in SQuAD's script
        ("10,5", "10 5", False),
        ("it’s", "its", False),  # only ASCII's
        ("", "", True),
        ("the", "a", True),  # nothing is left of either
        ("", "neon", False),
        ("STRASSE", "strasse", True),
        ("cafe\u0301", "caf\u00e9", True),  # the same letter, written in two ways
    ],
)
def test_exact_match(answer: str, reference: str, same: bool) -> None:
    assert exact_match(answer, [reference]) == float(same)
    assert exact_match(reference, [answer]) == float(same)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "a cat sat down", 2 * (2 / 2) * (2 / 3) / (2 / 2 + 2 / 3)),
        (
            "sat sat sat",
            "cat sat",
            2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2),
        ),  # a bag of words
        ("sat sat mat", "sat sat", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("", "cat", 0.0),
        ("the", "cat", 0.0),
        ("水是氢和氧", "水是氧和氢", 1.0),  # each character is a word
        ("水。", "水", 1.0),
        ("水です", "氷です", 2 / 3),
    ],
)
def test_f1(answer: str, reference: str, expected: float) -> None:
    assert f1(answer, [reference]) == pytest.approx(expected)


def test_the_best_of_several_references_counts() -> None:
    references = ["ten", "10 protons", "It has ten protons."]
    assert exact_match("10 protons.", references) == 1
    assert f1("ten protons", references) == pytest.approx(2 * 1 * (2 / 4) / (1 + 2 / 4))
    assert rouge_l("It has ten protons", references) == 1
    assert lengths("It has ten", references) == (3, 2)  # of two that are as near the shorter one
    assert lengths("one two three four five six", references) == (6, 4)


def test_rouge_is_the_librarys() -> None:
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    for answer, reference in [
        ("Because of neon, neon lights are everywhere.", "Because of the prevalent use of neon lights."),
        ("α-particles are helium nuclei", "Alpha particles are helium nuclei: α"),  # mostly Latin letters
        ("naïve", "naive"),
        ("", "something"),
    ]:
        assert rouge_l(answer, [reference]) == scorer.score(reference, answer)["rougeL"].fmeasure


def test_rouge_sees_other_scripts() -> None:
    """rouge-score's own tokenizer drops all of it."""
    assert rouge_l("Вода состоит из водорода", ["Вода состоит из кислорода"]) == pytest.approx(0.75)
    assert rouge_l("水是氢和氧", ["水是氧和氢"]) == pytest.approx(3 / 5)
    assert rouge_l("", ["Вода"]) == 0
    assert is_mostly_other_script("Вода H2O")
    assert not is_mostly_other_script("H2O, water, вода")
    assert not is_mostly_other_script("42")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 10 o'clock, isn't it?", ["it's", "10", "o'clock", "isn't", "it"]),
        ("two-step 3.5%", ["two", "step", "3", "5"]),
        ("水はH2Oです。", ["水", "は", "h2o", "で", "す"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # marks belong to their letters
        ("'quoted' words'", ["quoted", "words"]),
        ("🙂 ...", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_normalized_words_of_scripts_without_spaces() -> None:
    assert normalized_words("水，是 H2O!") == ["水", "是", "h2o"]
    assert normalized_words("well – known") == ["well", "–", "known"]  # a dash of Unicode's stays where SQuAD leaves it


def test_repetition() -> None:
    assert repetition("") == 0
    assert repetition("one two three four") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("no no no no no no no no") == pytest.approx(4 / 5)
    assert repetition("水" * 100) > 0.98
    assert repetition("Neon glows red. Argon glows violet. Neither burns.") == 0


def test_length_ratio() -> None:
    assert length_ratio("one two three", ["one two"]) == 1.5
    assert length_ratio("", ["one two"]) == 0
    assert length_ratio("one", ["..."]) == 1  # a reference without a word counts as one


def test_every_metric_is_told_how_to_be_shown() -> None:
    assert list(METRICS) == [metric.name for metric in METRICS.values()]
    assert all(metric.title and metric.digits > 0 for metric in METRICS.values())
    assert not METRICS["loss"].higher_is_better
    assert METRICS["f1"].higher_is_better


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    with pytest.raises(GgtuneError, match=r'needs rouge_score: pip install "ggtune\[scores\]"'):
        need("rouge_score.rouge_scorer", "scores", "ROUGE")
