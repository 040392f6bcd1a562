"""The commands eval-choice, eval-general and diagnose, and the functions behind them."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Invoked
from quick_runs import Trained

from ggtune import pipeline
from ggtune.cli import cli
from ggtune.cli.training import end_of_run
from ggtune.config import TrainConfig
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate.diagnosis import Finding, read_findings
from ggtune.pipeline import checked
from ggtune.pipeline.checked import check_run
from ggtune.pipeline.side_effects import ChoiceOptions, GeneralOptions, measure_choices, measure_on_general
from ggtune.run.progress import Reporter
from ggtune.scores.statistics import paired_difference
from ggtune.train.result import Result

GOLDEN = Path(__file__).parents[1] / "golden/choice"
TEXT = "The river was high. Nobody crossed it.\n\nOn the third day the rain stopped, and the old ferry went again.\n\n"


def run(*arguments: object) -> Invoked:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "ferry.txt"
    path.write_text(TEXT * 6)
    return path


class Notes(Reporter):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def test_a_run_alone_is_its_base_and_its_result(trained: Trained, text: Path) -> None:
    notes = Notes()
    found = measure_on_general([trained.folder], GeneralOptions(text, threads=1), notes)
    assert found.labels == ("base", "best")
    assert len(found.changes) == 1
    assert any("best held-out loss" in note for note in notes.texts)
    assert not (trained.folder / "general.json").exists()  # it is of the built-in text
    alone = measure_on_general([f"{trained.folder}@base"], GeneralOptions(text, threads=1))
    assert alone.measured[0].losses.tolist() == found.measured[0].losses.tolist()
    assert alone.lines()[0].startswith(f"perplexity of ferry.txt {alone.measured[0].perplexity:.1f} [")


def test_several_are_compared_with_the_first(trained: Trained, text: Path) -> None:
    adapter = trained.folder / "adapter.gguf"
    result = run("eval-general", MODEL, f"{MODEL}+{adapter}", f"{MODEL}+{adapter}*0", "--text", text, "--json", "-t", 1)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    assert [change["to"] for change in values["changes"]] == [one["label"] for one in values["measured"]][1:]
    tuned, nothing = values["changes"]
    assert tuned["perplexity_change"]["low"] > 0.1
    assert nothing["perplexity_change"]["value"] == 0
    shown = run("eval-general", MODEL, f"{MODEL}+{adapter}", "--text", text, "-t", 1).stdout.splitlines()
    assert shown == [
        f"{values['measured'][0]['label']} -> {values['measured'][1]['label']}:",
        *(f"  {line}" for line in tuned["lines"]),
    ]


def test_choices_of_several_models(trained: Trained, tmp_path: Path) -> None:
    model = GOLDEN / "model.gguf"
    options = ChoiceOptions(shots=1, max_questions=6, out=tmp_path, threads=1)
    done: list[tuple[int, int]] = []
    found = measure_choices([model, MODEL], [GOLDEN / "arc.jsonl"], options, done=lambda n, of: done.append((n, of)))
    assert done == [(n, 12) for n in range(1, 13)]
    one = found[0]
    first, second = one.results
    assert one.difference(1, "acc_norm") == paired_difference(first.values("acc_norm"), second.values("acc_norm"))
    rows = [json.loads(line) for line in (tmp_path / "model-arc.jsonl").read_text().splitlines()]
    assert [row["log_probs"] for row in rows] == [list(scored.log_probs) for scored in first.questions]
    assert (tmp_path / f"{MODEL.stem}-arc.jsonl").exists()
    values = one.to_dict()
    assert values["results"][0]["n_questions"] == 6
    assert values["differences"][0]["acc"]["value"] == pytest.approx(
        second.scores["acc"].value - first.scores["acc"].value
    )


def test_the_command_shows_scores(trained: Trained) -> None:
    tasks = GOLDEN / "hellaswag.jsonl"
    result = run("eval-choice", GOLDEN / "model.gguf", GOLDEN / "model.gguf", "--tasks", tasks, "-t", 1)
    assert result.exit_code == 0, result.output
    head, first, second = result.stdout.splitlines()
    assert head == "hellaswag.jsonl: 25 questions like hellaswag, 0-shot"
    assert first.endswith("acc 0.4800 ± 0.1020  acc_norm 0.6400 ± 0.0980  acc_bytes 0.6400 ± 0.0980")
    assert first != second  # the same model twice has two names
    cut = run(
        "eval-choice", GOLDEN / "model.gguf", "--tasks", GOLDEN / "truthfulqa.jsonl", "--format", "truthfulqa_mc2"
    )
    assert "acc 0.6667 ± 0.2108" in cut.stdout
    assert "cut from the left: 6" in cut.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tasks", "none.jsonl"), "No such file"),
        (("--tasks", GOLDEN / "arc.jsonl", "--shots", 40), "24 questions to show as examples, fewer than --shots 40"),
        (("--tasks", GOLDEN / "arc.jsonl", "--examples", GOLDEN / "mmlu.jsonl"), "has examples like mmlu"),
        (("--tasks", GOLDEN / "arc.jsonl", "--format", "mmlu"), "no question in the form of mmlu"),
    ],
)
def test_what_the_command_refuses(arguments: tuple[object, ...], said: str) -> None:
    result = run("eval-choice", GOLDEN / "model.gguf", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not result.stdout


def test_diagnose_says_and_writes(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    shutil.copy(MODEL, folder / "model.gguf")
    result = run("diagnose", folder, "-t", 1)
    assert result.exit_code == 1
    assert "Merge lost the training: the merged file is NOT good" in result.stdout
    found = read_findings(folder)
    assert found is not None
    assert [finding.line() for finding in found] == result.stdout.splitlines()
    (folder / "model.gguf").unlink()
    result = run("diagnose", folder, "--json", "-t", 1)
    assert json.loads(result.stdout) == json.loads((folder / "diagnosis.json").read_text())
    assert run("diagnose", tmp_path).exit_code == 1


def test_a_run_that_can_not_be_checked_is_no_error(trained: Trained, tmp_path: Path) -> None:
    """Its model is made, perhaps after days."""
    notes = Notes()
    found = check_run(tmp_path, (MODEL, ()), (GOLDEN / "none.gguf", ()), trained_s=1.0, threads=1, reporter=notes)
    assert (found.general, found.findings) == (None, ())
    assert "can't be told" in notes.texts[0]
    assert "holds no run" in notes.texts[1]


def test_a_checked_run_has_both_files(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    finding = Finding("overfitted", "warning", "It rose.", "Give fewer --epochs.")
    seen: list[float] = []
    monkeypatch.setattr(checked, "diagnose", lambda *_, seconds, **__: seen.append(seconds) or [finding])
    for trained_s in (1.0, 1000.0, 1e6):
        found = check_run(folder, (MODEL, ()), (MODEL, trained.adapters), trained_s=trained_s, threads=1)
        assert found.findings == (finding,)
    assert seen == [8.0, 100.0, 240.0]
    assert found.general is not None
    assert json.loads((folder / "general.json").read_text())["lines"] == found.general.lines()
    assert read_findings(folder) == [finding]


def test_what_was_found_is_said_last(capsys: pytest.CaptureFixture[str]) -> None:
    """But for notes, and for what the verdict on the losses says already."""
    overfitted = Finding("overfitted", "warning", "It rose.", "Give fewer --epochs.")
    template = Finding("wrong template", "warning", "It is another one.", "Leave it out.")
    note = Finding("overfitted", "note", "By heart.", "")
    plain = Result(
        config=TrainConfig(model="m", data="d"),
        steps=100,
        stop_reason="all 100 steps are done",
        loss=1.0,
        smoothed_loss=1.0,
        held_out_loss=None,
        held_out_before=None,
        best_held_out=None,
        best_step=None,
        first_loss=2.0,
        start_loss=2.0,
        n_updates=100,
        steps_per_epoch=40,
        is_under=False,
        is_flat=False,
        n_tokens=1000,
        seconds=1.0,
        adapter=Path("adapter.gguf"),
    )
    end_of_run(plain, [template, overfitted, note])
    assert capsys.readouterr().out.splitlines() == [template.line(), overfitted.line()]
    told = dataclasses.replace(
        plain, turned_up=True, held_out_before=9.0, held_out_loss=3.0, best_held_out=2.0, best_step=4
    )
    end_of_run(told, [template, overfitted])
    *_, verdict, last = capsys.readouterr().out.splitlines()
    assert verdict.startswith("The run has overfitted")
    assert last == template.line()


def test_the_pipeline_offers_them() -> None:
    assert pipeline.measure_choices is measure_choices
    with pytest.raises(GgtuneError, match="no such file or folder"):
        pipeline.measure_on_general(["nowhere.gguf"])
