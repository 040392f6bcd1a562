"""`run` asks the same questions before and after: what stands in the folder, over interruptions, and when not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from quick_runs import ROWS

from ggtune import pipeline
from ggtune.cli import cli
from ggtune.config import TrainConfig
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate import before_after
from ggtune.run.progress import Reporter


class Noted(Reporter):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    table = tmp_path / "table.csv"
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in ROWS))
    return TrainConfig(
        model=str(MODEL),
        data=str(table),
        ctx=64,
        batch=2,
        rank=4,
        lr=4e-3,
        epochs=0.0,
        max_steps=2,
        holdout="2",
        save_every="0",
        threads=1,
    )


def beside(**options: Any) -> pipeline.Packaging:
    return pipeline.Packaging("asked", merge=False, check=False, **options)


def test_a_run_asks_twice(config: TrainConfig, tmp_path: Path) -> None:
    reporter = Noted()
    found = pipeline.run(dataclasses.replace(config, max_steps=40), tmp_path / "run", beside(), reporter=reporter)
    assert found.asked is not None
    written = before_after.read(tmp_path / "run")
    assert written == list(found.asked.questions)
    assert len(written) == 2
    assert all(one.before and one.after and one.before != one.after and one.held_out for one in written)
    head, *rest = found.asked.lines()
    assert head.startswith("Before and after, 2 questions held out of the training (")
    assert f"  {written[0].where}: {written[0].question}" in rest
    assert any(note.startswith("Asked the base 2 questions before the training, in ") for note in reporter.notes)


def test_the_merged_model_is_asked(config: TrainConfig, tmp_path: Path) -> None:
    """Trained by heart on all rows, and asked a question from a file."""
    asked = tmp_path / "asked.txt"
    asked.write_text(ROWS[0][0] + "\n")
    packaging = pipeline.Packaging("asked", outtype="f16", questions=str(asked), check=False)
    found = pipeline.run(dataclasses.replace(config, max_steps=60, holdout="0"), tmp_path / "run", packaging)
    assert found.asked is not None
    (one,) = found.asked.questions
    assert one.after == ROWS[0][1]
    assert one.before != one.after
    assert found.asked.lines()[0].startswith("Before and after, 1 question of yours (")


def test_questions_and_the_bases_answers_are_kept(config: TrainConfig, tmp_path: Path) -> None:
    """Also where the run was killed between the two: the file is there from the first step on."""
    folder = tmp_path / "run"
    pipeline.run(config, folder, beside())
    first = before_after.read(folder)
    before_after.write(folder, [dataclasses.replace(one, before="MARK", after=None) for one in first])
    more = pipeline.resume(folder, {"max_steps": 4})
    assert isinstance(more, pipeline.RunResult)
    assert more.asked is not None
    kept = before_after.read(folder)
    assert [one.before for one in kept] == ["MARK", "MARK"]
    assert all(one.after is not None for one in kept)
    assert "s before" not in more.asked.lines()[0]  # it was asked in another session
    before_after.write(folder, [dataclasses.replace(one, before=None) for one in kept])
    pipeline.resume(folder, {"max_steps": 5})
    assert [one.before for one in before_after.read(folder)] == [one.before for one in first]  # asked anew


def test_other_questions_and_a_new_run_are_asked_anew(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    pipeline.run(config, folder, beside())
    before_after.write(folder, [dataclasses.replace(one, before="MARK") for one in before_after.read(folder)])
    checkpoint = pipeline.find_checkpoint(pipeline.claim_folder(folder, resume=True))
    longer = dataclasses.replace(config, max_steps=3)
    pipeline.run(longer, folder, beside(questions="1"), pipeline.TrainOptions(checkpoint))
    (one,) = before_after.read(folder)
    assert one.before != "MARK"
    assert pipeline.questions_of_run(folder) == "1"
    before_after.write(folder, [dataclasses.replace(one, before="MARK")])
    pipeline.run(config, folder, beside(questions="1"), pipeline.TrainOptions(overwrite=True))
    (one,) = before_after.read(folder)
    assert one.before != "MARK"


def test_none_are_asked(config: TrainConfig, tmp_path: Path) -> None:
    found = pipeline.run(config, tmp_path / "run", beside(questions="0"))
    assert found.asked is None
    assert not (tmp_path / "run/before_after.jsonl").exists()
    assert pipeline.questions_of_run(tmp_path / "run") == "0"
    text = tmp_path / "text.txt"
    text.write_text("A plain text asks nothing. " * 40)
    plain = dataclasses.replace(config, data=str(text), max_steps=1, holdout="0")
    assert pipeline.run(plain, tmp_path / "plain", beside()).asked is None
    with pytest.raises(GgtuneError, match="the training is on plain text"):
        pipeline.run(plain, tmp_path / "other", beside(questions=str(text)))
    assert not (tmp_path / "other").exists()


def test_a_file_that_is_gone_is_said_before_anything_is_written(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(GgtuneError, match="neither a number nor a file"):
        pipeline.run(config, tmp_path / "run", beside(questions="nowhere.txt"))
    arguments = ["run", config.data, "--model", config.model, "--out", tmp_path / "run", "--questions", "nowhere.txt"]
    result = CliRunner().invoke(cli, [*map(str, arguments), "--detach"])
    assert result.exit_code == 1
    assert "neither a number nor a file" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_base_that_can_not_be_asked_is_trained_all_the_same(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise GgtuneError("there is no memory for its cache")

    monkeypatch.setattr(before_after, "asked", refused)
    reporter = Noted()
    found = pipeline.run(config, tmp_path / "run", beside(), reporter=reporter)
    assert found.asked is None
    assert found.package is not None
    assert "The base can't be asked before the training: there is no memory for its cache" in reporter.notes
    assert not (tmp_path / "run/before_after.jsonl").exists()


def test_ctrl_c_while_the_base_is_asked_leaves_nothing(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(before_after, "asked", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(config, tmp_path / "run", beside())
    assert not (tmp_path / "run").exists()


def test_a_user_sees_both(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))
    out = tmp_path / "run"
    arguments = ["run", config.data, "--model", config.model, "--out", out, "--no-merge", "--max-steps", 2, "--ctx", 64]
    more = ["--threads", 1, "--rank", 4, "--batch", 2, "--holdout", 2, "--questions", 1, "--no-check"]
    result = CliRunner().invoke(cli, [str(one) for one in (*arguments, *more)])
    assert result.exit_code == 0, result.output
    assert "Before and after, 1 question held out of the training (" in result.stdout
    (one,) = [json.loads(line) for line in (out / "before_after.jsonl").read_text().splitlines()]
    assert f"  {one['where']}: {one['question']}" in result.stdout
    again = CliRunner().invoke(
        cli, ["run", "--out", str(out), "--resume", "--no-merge", "--no-check", "--max-steps", "3"]
    )
    assert again.exit_code == 0, again.output
    assert "Before and after, 1 question" in again.stdout  # --questions 1 stays
    assert pipeline.questions_of_run(out) == "1"
