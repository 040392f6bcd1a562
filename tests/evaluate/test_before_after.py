"""Questions before and after: which are asked, what is kept of them, and how they are said."""

import dataclasses
import json
from pathlib import Path

import pytest
from quick_runs import ROWS, Trained

from ggtune import _core
from ggtune.data.templates import TEMPLATES
from ggtune.errors import DataError, GgtuneError
from ggtune.evaluate import before_after
from ggtune.evaluate.before_after import BeforeAfter, asked, chosen_questions, lines
from ggtune.train.fixed_questions import number_or_file


@pytest.fixture(scope="module")
def model(trained: Trained) -> _core.Model:
    return _core.Model(trained.config.model)


def choose(text: str, trained: Trained, model: _core.Model, **changes: object) -> list[BeforeAfter]:
    samples = dataclasses.replace(trained.samples, **changes)  # type: ignore[arg-type]
    return chosen_questions(text, trained.config, samples, model)


def test_held_out_rows_are_drawn(trained: Trained, model: _core.Model) -> None:
    found = choose("5", trained, model)
    rows = {sample.row for sample in trained.samples.held_out}
    assert {one.row for one in found} == rows
    assert len(found) == 2  # there are no more
    assert all(one.held_out and (one.question, one.reference) in ROWS for one in found)
    assert [one.where for one in found] == [f"table.csv:{one.row}" for one in found]
    held_out = {sample.row: sample.tokens[: sample.n_prompt].tolist() for sample in trained.samples.held_out}
    assert all(list(one.prompt) == held_out[one.row] for one in found if one.row is not None)
    assert choose("1", trained, model) in ([found[0]], [found[1]])
    assert choose("0", trained, model) == []


def test_without_held_out_rows_trained_ones_are_asked(trained: Trained, model: _core.Model) -> None:
    found = choose("3", trained, model, held_out=[])
    assert len({one.question for one in found}) == 3
    assert not any(one.held_out for one in found)
    assert {one.row for one in found} <= {sample.row for sample in trained.samples.training}


def test_the_same_question_is_asked_once(trained: Trained, model: _core.Model) -> None:
    one = trained.samples.held_out[0]
    assert len(choose("5", trained, model, held_out=[one, one, one])) == 1


def test_a_file_of_questions(trained: Trained, model: _core.Model, tmp_path: Path) -> None:
    text = tmp_path / "asked.txt"
    text.write_text("\ufeffWhat do bees make?\n\n  Why?  \n", encoding="utf-8")
    found = choose(str(text), trained, model)
    assert [(one.question, one.reference, one.where, one.row) for one in found] == [
        ("What do bees make?", None, "asked.txt:1", None),
        ("Why?", None, "asked.txt:3", None),
    ]
    trained_prompt = {sample.row: sample for sample in [*trained.samples.training, *trained.samples.held_out]}[7]
    assert list(found[0].prompt) == trained_prompt.tokens[: trained_prompt.n_prompt].tolist()
    table = tmp_path / "asked.csv"
    table.write_text("question,answer\nWhy?,So.\n")
    (one,) = choose(str(table), trained, model)
    assert (one.question, one.reference, one.where) == ("Why?", "So.", "asked.csv:2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "\n\n", "there is no question in it"),
        ("bytes.txt", "\udcff", "can't be read as UTF-8"),
        ("bad.csv", 'question,answer\n"open,So.\n', "1 row can't be used"),
        ("texts.jsonl", '{"text": "A text."}\n', "holds texts, no questions"),
        ("long.txt", "why " * 3000, "tokens; the model's context is"),
    ],
)
def test_files_that_hold_no_questions(
    trained: Trained, model: _core.Model, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message):
        choose(str(tmp_path / name), trained, model)


def test_what_questions_can_be() -> None:
    assert number_or_file("12", "--questions") == 12
    for text in ("-1", "nowhere.txt", "½"):
        with pytest.raises(GgtuneError, match=f"--questions {text}: it is neither a number nor a file"):
            number_or_file(text, "--questions")


def test_the_answers_before_and_after(trained: Trained, model: _core.Model, tmp_path: Path) -> None:
    template = trained.samples.data.template
    questions = choose("4", trained, model, held_out=[])
    before = asked(questions, model, template, threads=1)
    assert all(one.before is not None and one.after is None for one in before)
    done = asked(before, model, template, adapters=trained.adapters, threads=1, after=True)
    references = dict(ROWS)
    assert [one.after for one in done] == [references[one.question] for one in done]  # learned by heart
    assert all(one.after_ended for one in done)
    assert [one.before for one in done] == [one.before for one in before]
    assert not {one.before for one in done} & set(references.values())
    before_after.write(tmp_path, done)
    assert before_after.read(tmp_path) == done
    first = json.loads((tmp_path / "before_after.jsonl").read_text().splitlines()[0])
    fields = {"question", "reference", "before", "after", "before_ended", "after_ended", "row"}
    assert fields <= set(first)
    for content in ("", '{"question": "a"\n', '{"other": 1}\n', "[1]\n"):
        (tmp_path / "before_after.jsonl").write_text(content)
        assert before_after.read(tmp_path) == []
    assert before_after.read(tmp_path / "nowhere") == []


def test_more_questions_than_are_decoded_at_once(trained: Trained, model: _core.Model) -> None:
    questions = choose("4", trained, model, held_out=[])
    many = (questions * 3)[:10]
    found = asked(many, model, trained.samples.data.template, adapters=trained.adapters, threads=1, after=True)
    assert [one.after for one in found] == [dict(ROWS)[one.question] for one in many]


def test_an_answer_stops_at_a_stop_text(trained: Trained, model: _core.Model) -> None:
    (question,) = choose("1", trained, model, held_out=[])
    first, stop, *_ = str(question.reference).split()
    template = dataclasses.replace(TEMPLATES["plain"], stops=(stop,))
    (found,) = asked([question], model, template, adapters=trained.adapters, threads=1)
    assert (found.before, found.before_ended) == (first, True)


def test_lines() -> None:
    one = BeforeAfter("Which gas is it?", "It is neon.", "Gas is a state", "It is neon.", False, True, 3, "t.csv:3")
    wide = lines([one], width=100)
    assert wide[1] == "  t.csv:3: Which gas is it?"
    assert wide[2].split() == ["before", "after", "reference"]
    assert "Gas is a state [cut]" in wide[3]
    assert wide[3].rstrip().endswith("It is neon.")
    narrow = lines([one], width=50)
    assert [line.split()[0] for line in narrow[2:]] == ["before", "after", "reference"]
    assert lines([dataclasses.replace(one, after=None)]) == []
    many = lines([one] * 9)
    assert many[-1] == "  ... and 4 more in before_after.jsonl"
    unknown = dataclasses.replace(one, reference=None, before="")
    assert "reference" not in "".join(lines([unknown]))
    assert "(nothing)" not in lines([unknown])[3]  # it is said to be cut
