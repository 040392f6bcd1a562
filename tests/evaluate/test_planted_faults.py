"""What a diagnosis says of runs with a planted fault, and that it says nothing of good ones."""

import dataclasses
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from planted_runs import ROWS, shuffled, train

from ggtune import _core
from ggtune.data.samples import Sample
from ggtune.demo import MODEL
from ggtune.errors import DivergedError, GgtuneError
from ggtune.evaluate import diagnosis
from ggtune.evaluate.answer_order import MOST_ROWS, dependence, rows_to_look_at
from ggtune.evaluate.diagnosis import Finding, read_findings, write_findings
from ggtune.evaluate.log_probs import Likelihood
from ggtune.evaluate.verify import samples_of
from ggtune.gguf.merge import merge_adapters
from ggtune.pipeline.reporting import report
from ggtune.run.checkpoint import newest_checkpoint
from ggtune.run.job import read_settings
from ggtune.run.outputs import Outputs
from ggtune.train.monitor import Monitor


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("good"))


def diagnose(folder: Path) -> list[Finding]:
    """Diagnose a run; what is found stands in the first part of its report, too, and nothing else there."""
    found = diagnosis.diagnose(folder, threads=1, seconds=400.0)
    write_findings(folder, found)
    (page, *_) = report([folder])
    (part,) = re.findall("What was found</h2>(.*?)<h2", page.read_text(encoding="utf-8"), re.DOTALL)
    said = " ".join(html.unescape(re.sub("<[^>]*>", "", part)).split())
    for finding in found:
        assert " ".join(finding.text.split()) in said
    assert ("Nothing that looks wrong." in said) == (not found)
    return found


def only(findings: list[Finding], kind: str) -> Finding:
    assert [finding.kind for finding in findings] == [kind]
    return findings[0]


def test_nothing_is_said_of_a_good_run(good: Path) -> None:
    assert diagnose(good) == []


def test_what_a_question_is_worth(good: Path) -> None:
    """Against the losses of each answer behind both questions, one text after another."""
    config = read_settings(good / "config.json")
    assert config is not None
    rows = rows_to_look_at(samples_of(config).training)
    assert 24 <= len(rows) <= MOST_ROWS
    model = _core.Model(str(MODEL))

    def loss(question: Sample, answer: Sample) -> float:
        tokens = np.concatenate([question.tokens[: question.n_prompt], answer.tokens[answer.n_prompt :]])
        return -float(_core.decode_log_probs(model, tokens)[question.n_prompt - 1 :].sum(dtype=np.float64))

    found = dependence(Likelihood(model, threads=1), rows)
    own = sum(loss(row, row) for row in rows)
    others = sum(loss(before, row) for before, row in zip([rows[-1], *rows[:-1]], rows, strict=True))
    n_targets = sum(len(row.tokens) - row.n_prompt for row in rows)
    assert found.n_rows == len(rows)
    assert found.gain.value == pytest.approx((others - own) / n_targets, rel=1e-2)
    assert found.is_there


def test_shuffled_answers(tmp_path: Path) -> None:
    found = only(diagnose(train(tmp_path, shuffled(ROWS), epochs=1.0)), "shuffled answers")
    assert found.severity == "error"
    assert "the answer at row" in found.text


def test_a_wrong_template(tmp_path: Path) -> None:
    folder = train(tmp_path, template="chatml", epochs=1.0)
    found = only(diagnose(folder), "wrong template")
    assert "'chatml'" in found.text
    assert "--template" in found.advice
    # on a slow machine as well, where time would be over after a few rows
    only(diagnosis.diagnose(folder, threads=1, seconds=0.1), "wrong template")


def test_another_template_that_the_base_knows_no_difference_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(tmp_path, template="chatml", max_steps=1)
    monkeypatch.setattr(diagnosis, "_TEMPLATE_GAIN", 9.0)
    found = only(diagnose(folder), "another template")
    assert found.severity == "note"
    assert "does not tell whether that matters" in found.text
    assert "leave --template out" in found.advice


def test_the_models_own_template_by_its_name_is_none(tmp_path: Path) -> None:
    """The demo model's chat template is llama2's."""
    assert diagnose(train(tmp_path, template="llama2", epochs=1.0)) == []


def test_an_overfitted_run(tmp_path: Path) -> None:
    folder = train(tmp_path, ROWS[:24], epochs=16.0, lr=6e-3, batch=4, holdout="8")
    found = only(diagnose(folder), "overfitted")
    best = min(
        (record for line in (folder / "metrics.jsonl").read_text().splitlines() if (record := json.loads(line))),
        key=lambda record: record.get("held_out_loss", 9.0),
    )
    assert f"from step {best['step']} on the held-out loss rose from {best['held_out_loss']:.4f}" in found.text


def test_a_diverged_run(tmp_path: Path) -> None:
    found = diagnose(train(tmp_path / "soft", lr=0.2, warmup=0.0, clip=0.0))
    assert found[0].kind == "diverged"
    assert "smaller --lr than 0.2" in found[0].advice
    with pytest.raises(DivergedError):
        train(tmp_path / "hard", lr=1e20, warmup=0.0, epochs=4.0, batch=4)
    assert only(diagnose(tmp_path / "hard/run"), "diverged").severity == "error"


def test_a_run_that_got_worse_than_the_base(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training loss has risen, too, but by too little to call it divergence."""
    shutil.copytree(good, tmp_path / "run")
    found = newest_checkpoint(Outputs.folder(tmp_path / "run").checkpoint)
    assert found is not None
    place, checkpoint, *others = found
    monitor = Monitor(**checkpoint.state.monitor)
    before, first = monitor.held_out_before, monitor.first_loss
    assert before is not None
    assert first is not None
    losses = {
        "held_out": 1.05 * before,
        "lowest_held_out": 1.02 * before,
        "start_loss": first,
        "average": monitor.average * 1.05 * first / monitor.smoothed,
    }
    state = dataclasses.replace(checkpoint.state, monitor={**checkpoint.state.monitor, **losses})
    changed = (place, dataclasses.replace(checkpoint, state=state), *others)
    monkeypatch.setattr(diagnosis, "newest_checkpoint", lambda _: changed)
    worse = only(diagnose(tmp_path / "run"), "worse than the base")
    assert f"was {before:.4f} before the training and is {1.05 * before:.4f} after it." in worse.text


def test_a_merge_that_lost_the_training(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(good, folder)
    shutil.copy(MODEL, folder / "model.gguf")  # no proof of it: it is measured
    found = only(diagnose(folder), "merge lost the training")
    assert "keeps 0 % of what the adapter learned" in found.text
    merge_adapters(str(MODEL), [(str(folder / "adapter.gguf"), 1.0)], folder / "model.gguf", threads=1, outtype="f16")
    assert diagnose(folder) == []
    (folder / "proof.json").write_text(json.dumps({"good": False, "trained": {"kept": 0.31}}))
    assert "keeps 31 %" in only(diagnose(folder), "merge lost the training").text


def test_findings_are_kept(tmp_path: Path) -> None:
    findings = [Finding("overfitted", "warning", "It rose.", "Give fewer --epochs.")]
    assert read_findings(tmp_path) is None
    write_findings(tmp_path, findings)
    assert read_findings(tmp_path) == findings
    assert json.loads((tmp_path / diagnosis.DIAGNOSIS).read_text())["findings"][0]["kind"] == "overfitted"
    assert findings[0].line() == "Overfitted: It rose. Give fewer --epochs."
    (tmp_path / diagnosis.DIAGNOSIS).write_text("{")
    assert read_findings(tmp_path) is None


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(GgtuneError, match="holds no run"):
        diagnose(tmp_path)
