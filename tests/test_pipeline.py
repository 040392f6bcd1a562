"""From a table to an answer by :mod:`ggtune.pipeline` alone: what was trained is answered word for word."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ggtune import TrainConfig, pipeline
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate import proved_merge
from ggtune.ollama.modelfile import Modelfile
from ggtune.pipeline import asking, merging
from ggtune.run.metrics import read_metrics
from ggtune.run.registry import known_runs
from ggtune.train.samples import RunSamples, read_samples

ROWS = [
    ("Which gas do plants take in?", "Plants take in carbon dioxide."),
    ("What does a thermometer measure?", "It measures temperature."),
    ("How many legs has a spider?", "A spider has eight legs."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet is the third one?", "The third planet is Earth."),
    ("What do bees make?", "Bees make honey and wax."),
]
ROOT = Path(__file__).parents[1]
TEMPLATE, SYSTEM = "chatml", "Be brief."  # neither is the model's own


@dataclass
class Noted(pipeline.Reporter):
    """Keeps what it is told."""

    lines: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(text)

    def step(self, record: Any, **_: Any) -> None:
        self.steps.append(dict(record))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in ROWS))
    return path


def config(table: Path, **changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(table),
        "template": TEMPLATE,
        "system": SYSTEM,
        "ctx": 96,
        "batch": 2,
        "rank": 4,
        "lr": 4e-3,
        "epochs": 45.0,
        "holdout": "0",
        "save_every": "0",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


@dataclass
class Learned:
    """What train, merge and package of the pipeline have made."""

    folder: Path
    training: Any
    merge: Any
    package: Any
    reporter: Noted

    @property
    def merged(self) -> Path:
        return self.folder / "merged.gguf"

    def samples(self) -> RunSamples:
        from ggtune import Model

        return read_samples(self.training.config, Model(str(MODEL)))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Learned:
    folder, reporter = tmp_path_factory.mktemp("learned"), Noted()
    training = pipeline.train(config(table), folder / "run", reporter=reporter)
    found = Learned(folder, training, None, None, reporter)
    options = pipeline.MergeOptions(name="learned", threads=1)
    adapters = [(training.adapter, 1.0)]
    found.merge = pipeline.merge(MODEL, adapters, found.merged, options, samples=found.samples(), reporter=reporter)
    found.package = pipeline.package(found.merged, "learned", pipeline.PackageOptions(store=folder / "store"))
    return found


def answers(model: Path, **options: Any) -> list[str]:
    loaded = pipeline.load(model, pipeline.AskOptions(threads=1, max_tokens=24, **options))
    assert loaded.warnings == ()
    return [loaded.answer(question) for question, _ in ROWS]


def test_the_merged_model_answers_what_it_was_taught(learned: Learned) -> None:
    assert answers(learned.merged) == [answer for _, answer in ROWS]
    assert pipeline.ask(learned.merged, ROWS[0][0], pipeline.AskOptions(threads=1)) == ROWS[0][1]
    assert not set(answers(MODEL)) & {answer for _, answer in ROWS}


def test_so_does_the_base_with_the_adapter(learned: Learned) -> None:
    assert answers(MODEL, adapter=learned.training.adapter) == [answer for _, answer in ROWS]


def test_template_and_system_text_come_from_the_adapter_then_from_the_model(learned: Learned, table: Path) -> None:
    def asked_with(model: Path, **options: Any) -> tuple[str, str | None]:
        loaded = pipeline.load(model, pipeline.AskOptions(**options))
        return loaded.template.name, loaded.system

    assert asked_with(MODEL) == ("model", None)
    assert asked_with(learned.merged) == (TEMPLATE, SYSTEM)
    assert asked_with(MODEL, adapter=learned.training.adapter) == (TEMPLATE, SYSTEM)
    assert asked_with(learned.merged, template="llama2", system="Be kind.") == ("llama2", "Be kind.")
    assert asked_with(learned.merged, system="") == (TEMPLATE, None)
    again = config(table, model=str(learned.merged), template="llama2", system="Be kind.", max_steps=1, epochs=0.0)
    other = pipeline.train(again, learned.folder / "other").adapter
    assert asked_with(learned.merged, adapter=other) == ("llama2", "Be kind.")
    assert asked_with(learned.merged, adapter=other, system="") == ("llama2", None)


def test_the_answer_comes_piece_by_piece(learned: Learned) -> None:
    pieces = list(pipeline.load(learned.merged, pipeline.AskOptions(threads=1)).pieces(ROWS[1][0]))
    assert "".join(pieces) == ROWS[1][1]
    assert len(pieces) > 3
    assert pieces[0] == pieces[0].lstrip()


def test_white_space_around_the_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "answer_pieces", lambda *_, **__: iter([" ", "\n Seven", " goats", ". "]))
    loaded = pipeline.load(MODEL)
    assert list(loaded.pieces("How many?")) == ["Seven", " goats", ". "]
    assert loaded.answer("How many?") == "Seven goats."


def test_the_merge_is_proved_where_samples_are_given(learned: Learned, tmp_path: Path) -> None:
    assert learned.merge.good
    assert learned.merge.proof.n_same_answers == learned.merge.proof.n_answers == len(ROWS)
    options = pipeline.MergeOptions(threads=1)
    assert pipeline.merge(MODEL, [(learned.training.adapter, 1.0)], tmp_path / "a.gguf", options).proof is None
    with pytest.raises(GgtuneError, match="needs samples"):
        pipeline.merge(
            MODEL, [(learned.training.adapter, 1.0)], tmp_path / "b.gguf", pipeline.MergeOptions(outtype="auto")
        )
    options = pipeline.MergeOptions(outtype="f16", threads=1)
    of_run = pipeline.merge_run(learned.folder / "run", tmp_path / "c.gguf", options)
    assert of_run.adapter.path.samefile(learned.training.adapter)
    assert of_run.merge.proof.trained.n_samples == len(ROWS)
    assert {tensor["to"] for tensor in of_run.merge.counts["tensors"].values()} == {"f16"}


def test_the_package_has_the_trainings_template_and_system_text(learned: Learned) -> None:
    written = Modelfile.parse(learned.package.modelfile.read_text())
    assert written.system == SYSTEM
    assert "<|im_start|>user" in written.template
    assert learned.package.stored is not None
    with pytest.raises(GgtuneError, match="no folder of one"):
        pipeline.package(learned.merged, "m", pipeline.PackageOptions(which="best"))


def test_a_reporter_is_told_and_nothing_is_printed(
    learned: Learned, tmp_path: Path, table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [record["step"] for record in learned.reporter.steps] == list(range(1, learned.training.steps + 1))
    assert learned.reporter.lines[0].startswith("Model: ")
    assert learned.reporter.steps == read_metrics(learned.folder / "run/metrics.jsonl")
    pipeline.train(config(table, max_steps=1, epochs=0.0), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


def test_a_run_is_listed_where_that_is_asked_for(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))
    short = config(table, max_steps=1, epochs=0.0)
    pipeline.train(short, tmp_path / "a")
    assert known_runs() == []
    pipeline.train(short, tmp_path / "b", pipeline.TrainOptions(listed=True))
    assert known_runs() == [tmp_path / "b"]


def test_a_run_that_holds_one_already(learned: Learned, table: Path) -> None:
    with pytest.raises(GgtuneError, match="already holds a run"):
        pipeline.train(config(table), learned.folder / "run")


def test_the_chain_goes_on_where_it_stopped(tmp_path: Path, table: Path) -> None:
    """Trained for two steps, then resumed for two more, and packaged both times as it was asked for."""
    packaging = pipeline.Packaging("chain", outtype="f16")
    first = pipeline.run(config(table, max_steps=2, epochs=0.0), tmp_path / "run", packaging)
    assert first.training.steps == 2
    assert first.merged == tmp_path / "run/model.gguf"
    proof = json.loads((tmp_path / "run/proof.json").read_text())
    assert proof["trained"]["n_samples"] == len(ROWS)
    reporter = Noted()
    more = pipeline.resume(tmp_path / "run", {"max_steps": 4}, reporter=reporter)
    assert isinstance(more, pipeline.RunResult)
    assert more.training.steps == 4
    assert [record["step"] for record in reporter.steps] == [3, 4]
    assert more.package is not None
    assert str(more.package.name) == "chain"
    assert {tensor["to"] for tensor in more.merge.counts["tensors"].values()} == {"f16"}
    assert pipeline.load(more.merged).system == SYSTEM


def test_how_long_scales_are_tuned(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as is asked for, also by a run that goes on; else three minutes, or a tenth of a long training."""
    tuned: list[float] = []

    def noted(*_: object, seconds: float, **__: object) -> None:
        tuned.append(seconds)

    monkeypatch.setattr(proved_merge, "tune_scales", noted)
    asked_for = pipeline.Packaging("chain", tune_seconds=12.5, questions="0", check=False)
    pipeline.run(config(table, max_steps=1, epochs=0.0), tmp_path / "asked", asked_for)
    pipeline.resume(tmp_path / "asked", {"max_steps": 2})
    monkeypatch.setattr(merging, "_TUNE_SHARE", 0.0)
    by_default = pipeline.Packaging("chain", questions="0", check=False)
    pipeline.run(config(table, max_steps=1, epochs=0.0), tmp_path / "short", by_default)
    monkeypatch.setattr(merging, "_TUNE_SHARE", 1e6)
    pipeline.run(config(table, max_steps=1, epochs=0.0), tmp_path / "long", by_default)
    pipeline.merge_run(tmp_path / "long", tmp_path / "merged.gguf")
    elapsed_s = [
        record["elapsed_s"] for record in read_metrics(tmp_path / "long/metrics.jsonl") if "elapsed_s" in record
    ]
    assert tuned == [12.5, 12.5, 180.0, 1e6 * elapsed_s[-1], 1e6 * elapsed_s[-1]]


def test_the_chain_without_a_merge(tmp_path: Path, table: Path) -> None:
    packaging = pipeline.Packaging("beside", merge=False)
    found = pipeline.run(config(table, max_steps=1, epochs=0.0), tmp_path / "run", packaging)
    assert found.merged is None
    assert found.merge is None
    written = Modelfile.parse((tmp_path / "run/Modelfile").read_text())
    assert (tmp_path / "run" / written.adapter).samefile(found.adapter.path)
    with pytest.raises(GgtuneError, match="no run"):
        pipeline.resume(tmp_path / "nothing")


def test_the_page_about_the_functions_is_true(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run what docs/api.md shows, on the demo's model."""
    page = (ROOT / "docs/api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "base.gguf").write_bytes(MODEL.read_bytes())
    (tmp_path / "train.csv").write_text(table.read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "api"}
    for block in blocks:
        exec(block, names)
    shown = capsys.readouterr().out
    assert "Modelfile\n" in shown
    assert "Answer in one sentence." in shown
    assert len(names["reporter"].losses) == 1
    listed = set(re.findall(r"^\| `(\w+)\(", page, flags=re.MULTILINE))
    assert listed == {
        *("train", "merge", "merge_run", "package", "load", "ask", "run", "resume"),
        *("compare_subjects", "evaluate", "measure_choices", "measure_on_general"),
    }
    assert listed < set(pipeline.__all__)


def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "examples/train_and_ask.py", "--steps", "3", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 3/3" in done.stdout
    assert "Who keeps the lighthouse of Skarn?  ->  " in done.stdout
    assert (tmp_path / "out/Modelfile").is_file()
