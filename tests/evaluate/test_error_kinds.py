"""Kinds of answers, told from texts alone: one of each, what separates neighbours, and the summary by groups."""

from decimal import Decimal
from typing import Any

import pytest

from ggtune.evaluate import languages
from ggtune.evaluate.answer_texts import entities, loops, numbers
from ggtune.evaluate.error_kinds import KINDS, error_kinds, error_summary

LOOP = "Neon is a gas. " + "It glows red in a tube. " * 8


def row(question: str, reference: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"question": question, "reference": reference, "answer": answer, "ended": True, **more}


NEON = ("What is the atomic number of neon?", "The atomic number of neon is 10.")
CAPITAL = ("What is the capital of France?", "The capital of France is Paris.")


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("empty", row(*NEON, " \n")),
        ("right", row(*NEON, "the atomic number of NEON is 10")),
        ("right", row(NEON[0], "10", "Neon's atomic number is ten.")),
        ("right", row(*NEON, "The atomic number of neon is 10.0.")),
        ("right", row("How many legs has a spider?", "Eight.", "A spider has eight legs.")),
        ("wrong number", row(*NEON, "The atomic number of neon is 12.")),
        ("wrong number", row("What happened in 1998?", "In 1998 it sold 1,250 cars.", "In 1998 it sold 1,500 cars.")),
        ("missing entity", row(*NEON, "The atomic number of neon is small.")),
        ("missing entity", row(*CAPITAL, "The capital of France is Lyon.")),
        ("missing entity", row("What is water?", "It is H2O.", "It is a liquid.")),
        ("missing entity", row("Which gas is it?", "Neon", "Argon")),
        ("off-topic", row(*NEON, "Cats sleep during most days because hunting happens early.")),
        ("cut", row(*NEON, "The atomic number of neon is", ended=False)),
        ("cut", row(*NEON, "The atomic number of neon is 10.", ended=False)),
        ("endless", row(*NEON, LOOP, ended=False)),
        ("endless", row(*NEON, "".join(f"{i}. Neon is a gas.\n" for i in range(9)), ended=False)),
        ("other wording", row(*NEON, LOOP + " The atomic number of neon is 10.")),  # it has ended by itself
        ("copied question", row(*NEON, "What is the atomic number of neon?")),
        ("copied question", row(*CAPITAL, "the capital of France is what?")),
        (
            "missing entity",
            row("Which gas did Ann see in the tube?", "Ann saw neon.", "Which gas did Ann see? Helium."),
        ),
        ("other language", row(*NEON, "Атомный номер неона равен десяти.")),
        ("other language", row(*NEON, "Die Ordnungszahl von Neon ist leider nicht bekannt, sie ist aber klein.")),
        ("other language", row(*NEON, "氖的原子序数是10。")),
        ("other wording", row("What do bees make?", "They make honey and beeswax.", "They make beeswax alone.")),
        ("missing entity", row("Which one is less reactive?", "Sodium is less reactive.", "Carbon is less reactive.")),
        ("other wording", row("Say something.", "", "Something was said by nobody here.")),
        ("wrong number", row("Wie hoch?", "Etwa 3,5 Meter.", "Etwa 4,5 Meter.")),
        ("right", row("Wie hoch?", "Etwa 1.250.000 Meter.", "Etwa 1250000 Meter")),
    ],
)
def test_each_kind(kind: str, case: dict[str, Any]) -> None:
    assert error_kinds([case, row(*CAPITAL, CAPITAL[1]), row(*NEON, NEON[1])])[0] == kind


def test_without_the_library_scripts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(languages, "_ranker", lambda: None)
    german = row(*NEON, "Die Ordnungszahl von Neon ist leider nicht bekannt, sie ist aber klein.")
    russian = row(*NEON, "Атомный номер неона равен десяти.")
    assert error_kinds([german, russian]) == ["off-topic", "other language"]
    assert any("ggtune[scores]" in line for line in error_summary([german, russian]).lines())


def test_data_in_several_languages_are_held_against_their_own_references() -> None:
    german = "Die Hauptstadt von Frankreich ist seit langer Zeit die Stadt Paris."
    english = "The capital of France has been the city of Paris for a very long time."
    rows = [row("a?", german, german), row("b?", english, german), row("c?", english, english)] * 2
    kinds = error_kinds([*rows, row("d?", german, "La capitale de la France est depuis longtemps la ville de Lyon.")])
    assert kinds == ["right", "other language", "right"] * 2 + ["other language"]


def test_numbers_as_they_are_written() -> None:
    found = numbers("1,000 or 2.5, −3 and 1e-3; H2O, twelve, 15mL, 10-12; 3,5; 2.500.000")
    expected = ["1000", "2.5", "-3", "0.001", "12", "15", "10", "3.5", "2500000"]
    assert found == {Decimal(text).normalize() for text in expected}
    assert numbers("on 1.2.2003") == {Decimal(1), Decimal(2), Decimal(2003)}


def test_names_and_formulas() -> None:
    assert entities("The gas CO2 was found by Marie Curie. Nobody knew of it before.") == {"co2", "marie", "curie"}
    assert entities("- Neon lights up in many tubes everywhere.") == set()
    assert entities("carbon dioxide") == {"carbon", "dioxide"}  # of so few words each is content


def test_loops() -> None:
    assert loops(LOOP)
    assert loops("ha" * 20)
    assert loops("".join(f"{i}. Neon is a gas.\n" for i in range(9)))
    assert loops("x and y or z; " * 4 + "x and y")  # mostly repetition
    assert not loops("One, two, three. It is a gas that glows in a tube and is used for signs.")
    assert not loops("10, 10, 10")
    assert not loops("")


def test_the_summary_by_category_length_and_loss() -> None:
    rows = [
        row("a?", "It is 10.", "It is 10.", category="numbers", loss=1.0, n_targets=4),
        row("b?", "It is 10.", "It is 12.", category="numbers", loss=9.0, n_targets=4),
        row("c?", "It is Paris, a large city.", "It is Paris, a large city.", category="towns", loss=2.0, n_targets=8),
        row("d?", "It is Rome, a large city.", "It is Rome, a large city.", category="towns", loss=4.0, n_targets=8),
        row("e?", "It is 7 or so, as far as anybody can tell.", "It is 8.", category=None, loss=30.0, n_targets=10),
        row("f?", "It is not known at all to anybody so far.", "", category=None, loss=40.0, n_targets=10),
    ]
    summary = error_summary(rows)
    assert summary.kinds == ("right", "wrong number", "right", "right", "wrong number", "empty")
    assert dict(summary.all.kinds) == {"empty": 1, "right": 3, "wrong number": 2}
    assert summary.all.loss == pytest.approx(86 / 44)
    numbers_, towns = summary.categories  # the worst first
    assert (numbers_.name, numbers_.n, numbers_.right, numbers_.loss) == ("numbers", 2, 0.5, 1.25)
    assert (towns.name, towns.right) == ("towns", 1.0)
    assert [(group.n, group.right) for group in summary.lengths] == [(2, 0.5), (2, 1.0), (2, 0.0)]
    assert [group.right for group in summary.losses] == [1.0, 0.5, 0.0]
    assert summary.losses[0].name == "low, 0.25 to 0.25 nats per token"
    text = "\n".join(summary.lines())
    assert "right" in text
    assert "numbers  1 of 2 right, loss 1.250; wrong number 1" in text
    plain = summary.to_dict()
    assert plain["kinds"] == {"empty": 1, "right": 3, "wrong number": 2}
    assert sum(group["n"] for group in plain["lengths"]) == 6


def test_without_category_or_loss_there_are_no_such_groups() -> None:
    summary = error_summary([row(*NEON, NEON[1])] * 8)
    assert summary.categories == summary.losses == summary.lengths == ()
    assert error_summary([]).lines() == []
    assert set(summary.all.kinds) <= set(KINDS)
