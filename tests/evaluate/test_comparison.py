"""Two or more evaluations of the same samples: what is said of each score, and which rows got better or worse."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from ggtune.errors import GgtuneError
from ggtune.evaluate.answers import AnsweredSample
from ggtune.evaluate.comparison import Comparison, Measured, compare, holm
from ggtune.evaluate.comparison_text import lines, markdown, summary
from ggtune.evaluate.evaluation_scores import estimates
from ggtune.scores.text import exact_match, f1

NAMES = ("loss", "perplexity", "token_accuracy", "exact_match", "f1", "ended", "length_ratio")


def sample(i: int, answer: str | None, loss: float, *, ended: bool = True, n_targets: int = 5) -> AnsweredSample:
    reference = f"The number is {i}."
    scores = {} if answer is None else {"exact_match": exact_match(answer, [reference]), "f1": f1(answer, [reference])}
    return AnsweredSample(
        row=i,
        where=f"t.csv:{i}",
        question=f"Which number is it, {'abcdefghijklmnopqrstuvwxyz'[i % 26] * (1 + i // 26)}?",
        reference=reference,
        category="odd" if i % 2 else None,
        loss=loss * n_targets,
        weight=float(n_targets),
        n_targets=n_targets,
        n_correct_tokens=2,
        n_prompt_tokens=9,
        answer=answer,
        ended=None if answer is None else ended,
        n_tokens=None if answer is None else 4,
        scores=scores,
    )


def measured(label: str, answers: Sequence[AnsweredSample]) -> Measured:
    return Measured(label, answers, estimates(answers, NAMES))


def answered(label: str, n: int, n_right: int, loss: float, spread: float = 0.0) -> Measured:
    noise = np.random.default_rng(len(label)).normal(0, spread, n) if spread else np.zeros(n)
    texts = [f"The number is {i}." if i < n_right else "The number is 99." for i in range(n)]
    return measured(label, [sample(i, text, loss + float(noise[i])) for i, text in enumerate(texts)])


def verdicts(comparison: Comparison, subject: int = 1) -> dict[str, str]:
    return {
        row.metric.name: verdict.text(row.metric)
        for row in comparison.scores
        if (verdict := row.verdicts[subject - 1]) is not None
    }


def test_a_clear_gain_is_said_with_its_interval_and_p() -> None:
    found = compare([answered("base", 20, 0, 3.0, 0.3), answered("tuned", 20, 12, 1.0, 0.3)])
    said = verdicts(found)
    assert set(said) == {"loss", "token_accuracy", "exact_match", "f1", "ended"}
    assert said["loss"].startswith("better by ")
    assert " ± " in said["loss"]
    assert said["exact_match"].startswith("better by 0.600 ± 0.2")
    assert "p = " in said["exact_match"] or "p < 0.001" in said["exact_match"]
    assert said["ended"] == said["token_accuracy"] == "the same on all 20 rows"
    assert found.n_tests == 5
    assert len(found.better()) == 12
    assert found.worse() == []


def test_the_other_way_round_is_worse() -> None:
    found = compare([answered("tuned", 20, 12, 1.0, 0.3), answered("base", 20, 0, 3.0, 0.3)])
    said = verdicts(found)
    assert said["loss"].startswith("worse by ")
    assert said["exact_match"].startswith("worse by 0.600")
    assert len(found.worse()) == 12
    assert found.better() == []


def test_noise_is_no_difference() -> None:
    found = compare([answered("one", 20, 4, 2.0, 0.3), answered("two!", 20, 6, 2.0, 0.3)])
    said = verdicts(found)
    assert said["loss"] == said["exact_match"] == "no difference can be shown with 20 rows"
    assert summary(found).startswith("two! against one: no difference can be shown with 20 rows.")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_many_scores_are_corrected_for() -> None:
    """What is significant alone is none among many: p of the exact match is 2/64 before."""
    one, two = answered("one", 20, 0, 2.0), answered("two", 20, 6, 2.0)
    found = compare([one, two])
    (row,) = [row for row in found.scores if row.metric.name == "exact_match"]
    verdict = row.verdicts[0]
    assert verdict is not None
    assert verdict.difference.p_value == pytest.approx(2 / 64)
    assert verdict.difference.is_significant
    assert verdict.p_adjusted == pytest.approx(5 * 2 / 64)
    assert verdict.text(row.metric) == "no difference can be shown with 20 rows"


def test_rows_are_sorted_by_their_change() -> None:
    before = measured("a", [sample(i, "It is.", 2.0) for i in range(4)])
    texts = ["The number is 0.", "It is 7.", "It is.", "number"]
    after = measured("b", [sample(i, text, 2.0 - i) for i, text in enumerate(texts)])
    found = compare([before, after])
    assert found.by.name == "f1"
    assert [row.samples[0].row for row in found.better()] == [0, 3]
    assert [row.samples[0].row for row in found.worse()] == [1]
    by_loss = compare([before, after], by="loss")
    assert [row.samples[0].row for row in by_loss.better()] == [3, 2, 1]
    with pytest.raises(GgtuneError, match="can't be sorted by 'bleu': there are f1, exact_match, loss"):
        compare([before, after], by="bleu")


def test_without_answers_the_losses_are_compared() -> None:
    found = compare(
        [measured(n, [sample(i, None, loss + i / 9) for i in range(9)]) for n, loss in (("a", 2.0), ("b", 1.0))]
    )
    assert found.by.name == "loss"
    assert len(found.better()) == 9
    assert found.kinds() == [{}, {}]
    text = "\n".join(lines(found))
    assert "Better, t.csv:" in text
    assert "loss 2." in text
    assert "Kinds" not in text


def test_other_vocabularies_are_compared_by_character() -> None:
    """Per token the second looks better: it has twice the tokens, each with half of the loss and a bit."""
    a = [sample(i, None, 2.0 + i / 50) for i in range(20)]
    b = [replace(one, loss=one.loss * 1.2, weight=10.0, n_targets=10) for one in a]
    found = compare([measured("a", a), measured("b", b)])
    names = {row.metric.title for row in found.scores}
    assert "Loss (nats per character)" in names
    assert not {"Perplexity", "Loss (nats per token)"} & names
    assert verdicts(found)["loss"].startswith("worse by ")
    assert "token_accuracy" not in verdicts(found)
    assert len(found.worse()) == 20


def test_three_are_each_held_against_the_first() -> None:
    found = compare([answered("base", 30, 0, 3.0, 0.2), answered("one", 30, 20, 1.0, 0.2), answered("two", 30, 0, 3.0)])
    assert verdicts(found, 1)["exact_match"].startswith("better")
    assert verdicts(found, 2)["exact_match"] == "the same on all 30 rows"
    assert found.n_tests == 10
    text = "\n".join(lines(found, width=120))
    assert "one against base:" in text
    assert "two against base, row by row (F1 of words): 0 better, 0 worse, 30 the same" in text


def test_kinds_and_where_they_went() -> None:
    found = compare([answered("base", 6, 0, 3.0), answered("tuned", 6, 4, 1.0)])
    assert found.kinds() == [{"wrong number": 6}, {"right": 4, "wrong number": 2}]
    assert found.moves() == [("wrong number", "right", 4)]
    assert "tuned: wrong number -> right 4" in lines(found)


def test_a_question_that_is_repeated_counts_once() -> None:
    rows = [sample(i, "The number is 3.", 2.0) for i in range(5)]
    rows[4] = replace(rows[3], row=4, repeated=True)
    found = compare([measured("a", rows), measured("b", rows)])
    assert found.n_questions == 4
    assert sum(found.kinds()[0].values()) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "another"}, "on other samples"),
        ({"row": 77}, "on other samples"),
        ({"answer": None}, "has answers and the other has none"),
    ],
)
def test_what_can_not_be_compared(change: dict[str, object], message: str) -> None:
    one = answered("a", 4, 2, 1.0)
    rows = [*one.answers]
    rows[1] = replace(rows[1], **change)  # type: ignore[arg-type]
    with pytest.raises(GgtuneError, match=message):
        compare([one, replace(one, label="b", answers=rows)])
    with pytest.raises(GgtuneError, match="on other samples"):
        compare([one, answered("b", 5, 2, 1.0)])
    with pytest.raises(GgtuneError, match="at least two"):
        compare([one])


def test_a_terminal_gets_columns_and_a_narrow_one_lines() -> None:
    found = compare([answered("base", 20, 0, 3.0, 0.3), answered("tuned", 20, 12, 1.0, 0.3)])
    wide, narrow = lines(found, width=120, rows=1), lines(found, width=60, rows=1)
    assert all(len(line) <= 120 for line in wide)
    assert all(len(line) <= 60 for line in narrow if not line.startswith(("tuned", "In brackets")))
    (titles,) = [line for line in wide if line.strip().startswith("reference")]
    assert [part.strip() for part in titles.split("  ") if part] == [
        "reference",
        "base (wrong number)",
        "tuned (right)",
    ]
    assert any(line.strip().startswith("tuned") and "The number is" in line for line in narrow)
    assert "tuned is" in wide[0]
    assert any("corrected for 5 tests (Holm)" in line for line in wide)


def test_the_page_and_the_file() -> None:
    one, two = answered("base", 6, 0, 3.0), answered("tu|ned", 6, 4, 1.0)
    odd = [replace(two.answers[0], answer="The number | is *0*.\nYes"), *two.answers[1:]]
    found = compare([one, measured("tu|ned", odd)])
    page = markdown(found)
    assert "| The number \\| is \\*0\\*.<br>Yes |" in page
    heads = [line for line in page.splitlines() if line.startswith("| Score")]
    assert heads == ["| Score | base | tu\\|ned | tu\\|ned is |"]
    assert "## What got better: tu\\|ned (4 rows)" in page
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["labels"] == ["base", "tu|ned"]
    assert plain["n_better"] == [0, 4]
    assert plain["rows"][0]["answers"][0] == "The number is 99."
    assert plain["rows"][1]["kinds"] == ["wrong number", "right"]
    assert plain["scores"]["f1"]["differences"][0] is None
    assert plain["scores"]["f1"]["differences"][1]["verdict"].startswith(("better", "no difference"))


def test_a_loss_that_is_not_finite_is_no_verdict() -> None:
    rows = [sample(i, None, 2.0) for i in range(6)]
    broken = [replace(rows[0], loss=math.nan), *rows[1:]]
    found = compare([measured("a", rows), measured("b", broken)])
    (row,) = [row for row in found.scores if row.metric.name == "loss"]
    assert row.verdicts[0] is not None
    assert row.verdicts[0].better(row.metric) is None
    json.dumps(found.to_dict(), allow_nan=False)
