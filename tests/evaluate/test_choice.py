"""Multiple choice against lm-evaluation-harness (scripts/make_choice_golden.py), and the forms of its files."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune.errors import DataError, GgtuneError
from ggtune.evaluate.choice import scoring
from ggtune.evaluate.choice.files import read_choices
from ggtune.evaluate.choice.formats import FORMATS, ChoiceQuestion
from ggtune.evaluate.choice.scoring import ChoiceResult, Score, Scored, score_choices
from ggtune.evaluate.log_probs import Likelihood

GOLDEN = Path(__file__).parents[1] / "golden/choice"
NUMBERS = json.loads((GOLDEN / "scores.json").read_text(encoding="utf-8"))["tasks"]


@pytest.fixture(scope="module")
def tiny() -> Likelihood:
    return Likelihood(GOLDEN / "model.gguf", threads=1)


def file_of(task: str) -> Path:
    name = task.partition("-")[0]
    return GOLDEN / ("truthfulqa.jsonl" if name.startswith("truthfulqa") else f"{name}.jsonl")


def scored(tiny: Likelihood, task: str) -> ChoiceResult:
    file = read_choices(file_of(task), task.partition("-")[0])
    return score_choices(tiny, file.format, file.questions, shots=NUMBERS[task]["shots"])


@pytest.mark.parametrize("task", NUMBERS)
def test_scores_are_the_harness_s(tiny: Likelihood, task: str) -> None:
    """Its own tasks on the same rows and the same model in Hugging Face's form, in float32."""
    found, expected = scored(tiny, task), NUMBERS[task]
    assert len(found.questions) == len(expected["questions"])
    for one, golden in zip(found.questions, expected["questions"], strict=True):
        np.testing.assert_allclose(one.log_probs, golden["log_probs"], atol=1e-4)
    for name, golden in expected["scores"].items():
        assert found.scores[name].value == pytest.approx(golden["value"], abs=1e-5)
        assert found.scores[name].stderr == pytest.approx(golden["stderr"], abs=1e-5)
        values = [question[name] for question in expected["questions"] if name in question]
        assert found.values(name) == pytest.approx(values, abs=1e-5)


def test_the_golden_numbers_say_something() -> None:
    """Cut prompts, prompts with examples, right and wrong answers, and lengths that change what is chosen."""
    scores = NUMBERS["arc"]["scores"]
    assert scores["acc"]["value"] != scores["acc_norm"]["value"]
    assert 0.3 < scores["acc"]["value"] < 0.9
    assert len(NUMBERS["arc"]["questions"]) + len(NUMBERS["hellaswag"]["questions"]) == 50


def test_prompts_are_the_harness_s() -> None:
    for task, expected in NUMBERS.items():
        if expected["shots"] == 0 and not task.startswith("mmlu"):
            prompts = [question.prompt for question in read_choices(file_of(task), task).questions]
            assert prompts == [question["prompt"] for question in expected["questions"]]


def test_prompts_that_do_not_fit_are_cut_from_the_left(tiny: Likelihood) -> None:
    assert scored(tiny, "truthfulqa_mc1").n_cut == 6
    assert scored(tiny, "arc").n_cut == 0


def test_what_choices_have_in_common_is_computed_once(tiny: Likelihood, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[Any] = []
    each = Likelihood.each
    monkeypatch.setattr(Likelihood, "each", lambda self, found: each(self, texts.extend(found) or found))
    questions = read_choices(GOLDEN / "arc.jsonl").questions
    score_choices(tiny, FORMATS["arc"], questions)
    assert len(texts) == len(questions)
    for question, (prefix, ends) in zip(questions, texts, strict=True):
        assert len(ends) == len(question.choices)
        prompt = tiny.model.tokenize(question.prompt).tolist()
        assert len(prefix) >= len(prompt)


def test_a_choice_may_change_the_tokens_of_its_prompt(tiny: Likelihood) -> None:
    """White space at a prompt's end goes to the choices; those that join it in one token are scored behind it."""
    question = ChoiceQuestion(1, "Question: what is that?\nAnswer:  ", ("a cat", "the dog"), (0,))
    found = score_choices(tiny, FORMATS["arc"], [question]).questions[0]
    model = tiny.model
    for choice, log_prob in zip(question.choices, found.log_probs, strict=True):
        kept = model.tokenize("Question: what is that?\nAnswer:").tolist()
        whole = [model.bos_token, *model.tokenize(f"{question.prompt} {choice}").tolist()]
        n = len(kept) + 1
        expected = tiny.sums([(whole[:n], [whole[n:]])])[0]
        assert log_prob == pytest.approx(expected, abs=1e-4)


class Merging:
    """Tokens are characters, but that ": x" is one: it hides where the prompt ends."""

    bos_token, add_bos, n_ctx_train = -1, False, 0

    def tokenize(self, text: str, *, parse_special: bool) -> np.ndarray:
        return np.array([ord(c) for c in text.replace(": x", "\0")])


class Counting:
    """Log-probabilities that say which token of an end they are of."""

    model = Merging()

    def each(self, texts: list[Any]) -> Any:
        return ([np.arange(len(end)) for end in ends] for _, ends in texts)


def test_what_stands_in_front_of_a_choice_is_not_counted() -> None:
    """As the harness cuts the tokens of the whole text where those of the prompt alone end."""
    question = ChoiceQuestion(1, "q:", ("xz", "yz"), (0,))
    found = score_choices(Counting(), FORMATS["arc"], [question]).questions[0]  # type: ignore[arg-type]
    # "q", ": x", "z" and "q", ":", " ", "y", "z", of which two are the prompt's; the first is the same in both
    assert found.log_probs == (1, 1 + 2 + 3)


def test_shots_come_from_a_file_or_the_others(tiny: Likelihood, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    texts = scoring._Encoder.texts
    monkeypatch.setattr(
        scoring._Encoder, "texts", lambda self, prompt, choices: texts(self, prompts.append(prompt) or prompt, choices)
    )
    questions = read_choices(GOLDEN / "mmlu.jsonl").questions
    score_choices(tiny, FORMATS["mmlu"], questions[:2], shots=1, examples=questions[5:])
    title = "The following are multiple choice questions (with answers) about human anatomy.\n\n"
    assert prompts == [f"{title}{questions[5].prompt} B\n\n{question.prompt}" for question in questions[:2]]
    prompts.clear()
    score_choices(tiny, FORMATS["mmlu"], questions[:3], shots=1)
    assert [prompt.count("Answer: A") for prompt in prompts] == [0, 1, 1]
    with pytest.raises(GgtuneError, match="there are 2 questions to show as examples, fewer than --shots 3"):
        score_choices(tiny, FORMATS["mmlu"], questions[:3], shots=3)


def test_scores_of_a_question() -> None:
    question = ChoiceQuestion(1, "", ("ja", "nein, nie", "Ääää"), (1,))
    one = Scored(question, (-3.0, -9.0, -5.0))
    assert (one.chosen, one.chosen_norm, one.chosen_bytes) == (0, 1, 2)
    assert [one.score(name) for name in ("acc", "acc_norm", "acc_bytes")] == [0, 1, 0]
    two = Scored(ChoiceQuestion(1, "", ("a", "b", "c"), (0, 2)), (-1000.0, -1001.0, -1002.0))
    weights = [1, math.exp(-1), math.exp(-2)]
    assert two.mass == pytest.approx((weights[0] + weights[2]) / sum(weights))
    assert math.isnan(Score.of([1.0]).stderr)
    assert Score.of([1.0]).text() == "1.0000"
    assert Score.of([0, 1, 1, 1]).stderr == pytest.approx(0.25)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]


def as_numpy(values: list[str]) -> str:
    return str(np.array(values, dtype=object))


@pytest.mark.parametrize("how", ["json", "python", "numpy", "pandas"])
@pytest.mark.parametrize("name", ["arc", "hellaswag", "mmlu", "truthfulqa"])
def test_tables_give_the_same_questions(tmp_path: Path, name: str, how: str) -> None:
    """Lists in cells as json.dumps, str, NumPy and pandas write them."""

    def cell(value: Any) -> Any:
        if isinstance(value, dict) and how == "pandas":
            return "{" + ", ".join(f"{k!r}: array({v!r}, dtype=object)" for k, v in value.items()) + "}"
        if isinstance(value, list) and how in ("numpy", "pandas"):
            return as_numpy(value)
        if isinstance(value, (dict, list)):
            return json.dumps(value) if how == "json" else str(value)
        return value

    rows = rows_of(f"{name}.jsonl")
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    expected = read_choices(GOLDEN / f"{name}.jsonl")
    found = read_choices(path)
    assert found.format == expected.format
    assert [q.prompt for q in found.questions] == [q.prompt for q in expected.questions]
    assert [q.choices for q in found.questions] == [q.choices for q in expected.questions]
    assert [q.right for q in found.questions] == [q.right for q in expected.questions]


def test_the_tables_of_mmlu_s_authors_and_lists_of_json(tmp_path: Path) -> None:
    path = tmp_path / "anatomy_test.csv"
    path.write_text('"Which organ makes bile, and how?",the spleen,the liver,the heart,the lung,B\nTwo,1,2,3,4,A\n')
    first, second = read_choices(path).questions
    assert first.prompt.startswith("Which organ makes bile, and how?\nA. the spleen\nB. the liver\n")
    assert (first.row, second.row) == (1, 2)
    assert (first.right, second.right) == ((1,), (0,))
    rows = rows_of("arc.jsonl")
    for content in (rows, {"rows": [{"row_idx": i, "row": row} for i, row in enumerate(rows)]}):
        path = tmp_path / "arc.json"
        path.write_text(json.dumps(content, indent=1))
        assert [q.prompt for q in read_choices(path).questions] == [
            q.prompt for q in read_choices(GOLDEN / "arc.jsonl").questions
        ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("{}\n", "no question"),
        ('{"instruction": "a", "output": "b"}\n', "no multiple-choice questions in a known form: the columns are inst"),
        ('{"question": "a", "answerKey": "C", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}', "answerKey 'C'"),
        ('{"question": "a", "answerKey": "A", "choices": "xy"}', "row 1 has no choices with a list called text"),
        ('{"question": "a", "answer": 2, "choices": ["x", "y"]}', "none of its 2 choices (0 to 1)"),
        ('{"question": "a", "answer": 0, "choices": ["x"]}', "fewer than two choices"),
        ('{"question": " ", "answer": 0, "choices": ["x", "y"]}', "has no question"),
        ('{"question": "a", "answer": 0, "choices": ["x", ""]}', "an empty text among its choices"),
        ('{"activity_label": "a", "ctx": "b", "endings": ["[x]", "y"], "label": "0"}', "an ending without a word"),
        ('{"activity_label": "a", "ctx": "b", "endings": ["x", "y"], "label": ""}', "as its label"),
        ('{"question": "a", "mc1_targets": {"choices": ["x", "y"], "labels": [0, 1]}}', "another than the first"),
        ('{"question": "a", "mc2_targets": {"choices": ["x", "y"], "labels": [1, 1]}}', "some that are not"),
        ('{"question": "a", "mc2_targets": {"choices": ["x", "y"], "labels": [1]}}', "a label of 0 or 1 for each"),
        ('{"question": "a"}\n{"question', "line 2 is no JSON"),
        ("[1, 2]", "row 1 is int, not an object"),
        ("question,A,B,C,D,answer\na,b,c,d,e,A,f\n", "row 2 has 7 cells, the header has 6"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_choices(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_all_bad_rows_are_named_and_other_formats(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "answer": 9, "choices": ["x", "y"]}\n' * 13)
    with pytest.raises(DataError, match=r"13 rows are no question in the form of mmlu(.|\n)*row 10 (.|\n)*3 more"):
        read_choices(path)
    with pytest.raises(DataError, match="no multiple-choice format 'race'"):
        read_choices(path, "race")
    with pytest.raises(DataError, match="No such file"):
        read_choices(tmp_path / "none.jsonl")
