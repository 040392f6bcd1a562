"""`ggtune compare`: a run against its base, models with adapters, runs against each other; what is there is taken."""

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quick_runs import ROWS, Trained, train

from ggtune import pipeline
from ggtune.cli import cli
from ggtune.demo import MODEL
from ggtune.evaluate.evaluation import read_evaluation
from ggtune.gguf.adapter_file import read_adapter, write_adapter
from ggtune.pipeline import comparing

QUICK = ("--max-tokens", "12", "--threads", "1")


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["compare", *map(str, (*arguments, *QUICK))])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """All rows are trained on, and compared on: it knows them by heart."""
    return train(tmp_path_factory.mktemp("compared"), holdout="0")


def test_a_run_against_its_base(run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare(run.folder, "--split", "training", "--markdown", tmp_path / "page.md")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "6 samples of" in text
    assert "base last last is" in text
    assert "row by row (F1 of words): 6 better, 0 worse, 0 the same" in text
    assert "Training rows that were learned worst" in text
    values = json.loads((run.folder / "comparison.json").read_text())
    assert values["labels"] == ["base", "last"]
    assert values["n_better"] == [0, 6]
    assert values["split"] == "training"
    assert {row["answers"][1] for row in values["rows"]} == {answer for _, answer in ROWS}
    assert values["kinds"][1] == {"right": 6}
    assert values["scores"]["exact_match"]["values"][1]["value"] == 1.0
    assert (tmp_path / "page.md").read_text().startswith("# Comparison\n")

    def measured_again(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("ggtune.evaluate.evaluation_run.losses_of", measured_again)
    monkeypatch.setattr("ggtune.evaluate.worst_rows.losses_of", measured_again)
    again = compare(run.folder, "--split", "training", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == values


def test_what_eval_has_measured_is_taken(run: Trained) -> None:
    options = pipeline.EvaluateOptions(max_tokens=12, threads=1, split="training", max_samples=3)
    pipeline.compare_subjects([run.folder], options=options)
    folders = {path.parent.name for path in run.folder.glob("evaluation/*/evaluation.json")}
    assert {"base-training-3-samples-max-tokens-12", "last-training-3-samples-max-tokens-12"} <= folders


def test_a_model_with_an_adapter_against_it_alone(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is asked as the adapter's training asked, not as it would be by itself."""
    monkeypatch.chdir(tmp_path)
    adapter = tmp_path / "chatml.gguf"
    content = read_adapter(run.folder / "adapter.gguf")
    write_adapter(adapter, dataclasses.replace(content, notes={**content.notes, "template": "chatml"}))
    whats = [MODEL, f"{MODEL}+{adapter}", f"{MODEL}+{adapter}*0.5"]
    options = pipeline.EvaluateOptions(data=run.config.data, max_tokens=4, threads=1, generate=False)
    found = pipeline.compare_subjects(whats, tmp_path / "out", options)
    assert [one.template for one in found.evaluations] == ["chatml"] * 3
    assert found.comparison.labels == (MODEL.stem, f"{MODEL.stem}+chatml", f"{MODEL.stem}+chatml*0.5")
    assert found.comparison.by.name == "loss"
    assert found.file == tmp_path / "out/comparison.json"
    assert (tmp_path / "out/comparison.md").exists()
    half, whole = (found.comparison.scores[0].values[i] for i in (2, 1))
    assert half is not None
    assert whole is not None
    assert half.value != whole.value


def test_an_evaluation_of_an_adapter_that_is_gone_is_done_anew(tmp_path: Path) -> None:
    run = train(tmp_path, epochs=2.0, holdout="0")
    options = pipeline.EvaluateOptions(split="training", generate=False, threads=1)
    before = pipeline.compare_subjects([run.folder], options=options)
    content = read_adapter(run.folder / "adapter.gguf")
    found = [before]
    for factor in (2, 3, 3):
        changed = {name: factor * values for name, values in content.tensors.items()}
        write_adapter(run.folder / "adapter.gguf", dataclasses.replace(content, tensors=changed))
        found.append(pipeline.compare_subjects([run.folder], options=options))
    losses = [one.evaluations[1].scores["loss"].value for one in found]
    assert len(set(losses)) == 3
    assert losses[2] == losses[3]
    folder = run.folder / "evaluation"
    assert read_evaluation(folder / "last-training-losses") == before.evaluations[1]  # perhaps the user's
    assert read_evaluation(folder / "last-training-losses-compared").scores["loss"].value == losses[3]
    assert not (folder / "base-training-losses-compared").exists()


def test_a_run_that_was_trained_on_what_is_asked(run: Trained, tmp_path: Path) -> None:
    """The first run held two rows out; the second one has learned them."""
    fair = train(tmp_path, data=run.config.data, epochs=1.0, holdout="2")
    result = compare(fair.folder, run.folder, "--no-generate", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "was trained on 2 of the 2 questions that are asked here" in result.stdout
    assert "With 2 rows no difference could be shown, however large" in " ".join(result.stdout.split())
    other_way = compare(fair.folder, f"{fair.folder}@base", "--no-generate", "--out", tmp_path / "out")
    assert "was trained on" not in other_way.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL,), "alone can't be compared"),
        (("{run}@base",), "alone can't be compared: give "),
        ((MODEL, MODEL), "give --data"),
        ((MODEL, "nowhere.gguf"), "there is no such file or folder"),
        (("{run}", "{run}@77"), "has no checkpoint of step 77"),
        (("{run}",), "nothing of it was held out: give --split"),
        (("{run}", "--split", "training", "--no-generate", "--sort-by", "f1"), "rows can't be sorted by 'f1'"),
        (("{run}", "--split", "training", "--metrics", "nice"), "there is no score nice"),
    ],
)
def test_what_can_not_be_compared(run: Trained, arguments: tuple[object, ...], message: str) -> None:
    result = compare(*(str(one).format(run=run.folder) for one in arguments))
    assert result.exit_code == 1, result.output
    assert message in result.stderr


def test_eval_says_the_kinds_too(run: Trained, tmp_path: Path) -> None:
    arguments = ["eval", run.folder, "--split", "training", "--out", tmp_path / "out", *QUICK]
    result = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert "right      6  100 %  what the reference says" in result.stdout


def test_without_subjects(run: Trained) -> None:
    assert compare().exit_code == 2


def test_samples_that_one_tokenizer_leaves_out(run: Trained) -> None:
    options = pipeline.EvaluateOptions(split="training", generate=False, threads=1)
    both = pipeline.compare_subjects([run.folder], options=options).evaluations
    answers = [one.answers() for one in both]
    notes: list[str] = []

    class Noted(pipeline.Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    found = comparing._aligned(["a", "b"], [answers[0], answers[1][1:]], both, Noted())
    assert [len(one.answers) for one in found] == [5, 5]
    assert found[0].scores["loss"].value != both[0].scores["loss"].value
    assert notes == ["1 samples that not all of them could be measured on are left out."]
