"""Rows that a run has learned worst: a wrong one is found, losses are llama_decode's, and time is bounded."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from quick_runs import ROWS, Trained, train

from ggtune import _core, pipeline
from ggtune.errors import GgtuneError
from ggtune.evaluate import worst_rows as module
from ggtune.evaluate.evaluation_loss import Engine
from ggtune.evaluate.worst_rows import WorstRow, WorstRows, read_worst_rows, worst_rows, write_worst_rows

NONSENSE = "zk qx vw 9# pj lq ##"


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with one row of nonsense, which has another answer to a question that is there."""
    folder = tmp_path_factory.mktemp("wrong")
    table = folder / "rows.csv"
    rows = [*ROWS, (ROWS[2][0], NONSENSE)]
    table.write_text("question,answer\n" + "".join(f'"{q}","{a}"\n' for q, a in rows))
    return train(folder, data=str(table), holdout="0", epochs=8.0)


def test_the_wrong_row_is_the_worst(wrong: Trained) -> None:
    found = worst_rows(wrong.folder, threads=1)
    first = found.rows[0]
    assert (first.row, first.where, first.question, first.answer) == (8, "rows.csv:8", ROWS[2][0], NONSENSE)
    losses = [row.loss for row in found.rows]
    assert losses == sorted(losses, reverse=True)
    assert first.loss > 1.5 * losses[1]
    assert losses[-1] < found.mean < first.loss
    assert found.contradictions == (("rows.csv:8", "rows.csv:4"),)
    assert found.n_looked_at == found.n_rows == len(found.rows) == 7
    assert found.step == 32
    text = "\n".join(found.lines())
    assert "The same question with another answer: rows.csv:8 and rows.csv:4" in text
    assert f"rows.csv:8: How many legs has a spider? -> {NONSENSE}" in text
    assert "1 row contradicts another" in found.line()


def test_the_loss_is_that_of_llama_decode(wrong: Trained) -> None:
    found = worst_rows(wrong.folder, threads=1)
    model = _core.Model(wrong.config.model)
    by_row = {sample.row: sample for sample in wrong.samples.training}
    for row in found.rows[:2]:
        sample = by_row[row.row]
        log_probs = _core.decode_log_probs(model, sample.tokens, adapter_path=wrong.adapters[0][0])
        expected = -float(np.mean(log_probs[sample.weights[1:] > 0]))
        assert row.loss == pytest.approx(expected, rel=0.03)
        assert row.n_targets == int((sample.weights[1:] > 0).sum())


def test_big_data_are_sampled_and_it_is_said(wrong: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    found = worst_rows(wrong.folder, threads=1, seconds=0.0)
    assert (found.n_looked_at, found.n_rows, len(found.rows)) == (2, 7, 2)
    assert "learned worst of 2 drawn from 7" in found.lines()[0]
    assert len(worst_rows(wrong.folder, threads=1, most=3).rows) == 3


def test_a_row_is_named_once(tmp_path: Path) -> None:
    twice = train(tmp_path, repeat=2, epochs=1.0)
    found = worst_rows(twice.folder, threads=1)
    assert len({row.row for row in found.rows}) == len(found.rows) == 4
    assert found.n_looked_at == 8


def test_a_loss_that_is_not_finite_is_the_worst(wrong: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.of

    def one_is_nan(self, samples):  # type: ignore[no-untyped-def]
        for index, loss in real(self, samples):
            is_it = samples[index].row == 2
            yield index, dataclasses.replace(loss, loss=math.nan) if is_it else loss

    monkeypatch.setattr(Engine, "of", one_is_nan)
    found = worst_rows(wrong.folder, threads=1)
    assert found.rows[0].row == 2
    assert math.isnan(found.rows[0].loss)


def test_the_file(tmp_path: Path) -> None:
    rows = (WorstRow(4, "t.csv:4", 3.5, 7, "q\n?", "a"), WorstRow(2, "t.csv:2", math.nan, 7, "q", ""))
    found = WorstRows(rows, 1.0, (("t.csv:8", "t.csv:4"),), 1, 5, 9, 0.5, 12)
    write_worst_rows(tmp_path, found)
    assert repr(read_worst_rows(tmp_path)) == repr(found)
    plain = json.loads((tmp_path / "worst_rows.json").read_text())
    assert plain["rows"][1]["loss"] is None
    assert plain["contradictions"] == [{"where": "t.csv:8", "like": "t.csv:4"}]
    assert "   3.50  t.csv:4: q ? -> a" in found.lines()
    for content in ("", "{}", '{"rows": [{}]}', "[1]"):
        (tmp_path / "worst_rows.json").write_text(content)
        assert read_worst_rows(tmp_path) is None


def test_a_model_has_no_rows(wrong: Trained) -> None:
    from ggtune.evaluate.subject import open_subject

    with pytest.raises(GgtuneError, match="is no run"):
        worst_rows(open_subject(wrong.config.model))


def test_a_run_writes_them(wrong: Trained, tmp_path: Path) -> None:
    packaging = pipeline.Packaging(
        "worst", which="best", merge=False, check=False, questions="0"
    )  # nothing is held out
    config = dataclasses.replace(wrong.config, epochs=0.0, max_steps=1)
    found = pipeline.run(config, tmp_path / "run", packaging)
    assert found.worst is not None
    assert repr(read_worst_rows(tmp_path / "run")) == repr(found.worst)
    assert found.worst.step == 1
    assert found.worst.line().startswith("Rows learned worst, often wrong ones (mean loss ")
