"""Figures of 20 rows against those of scripts/golden/make_scores.py, which shares nothing with what it checks."""

import csv
import json
from pathlib import Path

import pytest

from ggtune import pipeline
from ggtune.demo import MODEL
from ggtune.evaluate.answers import AnsweredSample
from ggtune.evaluate.evaluation_scores import AnswerScorer, estimates
from ggtune.scores.metrics import METRICS

GOLDEN = Path(__file__).parent.parent / "golden/scores"
FIGURES = json.loads((GOLDEN / "figures.json").read_text())
ROWS = [json.loads(line) for line in (GOLDEN / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def shown(name: str, value: float) -> str:
    return f"{value:.{METRICS[name].digits}f}"


def test_scores_of_answers() -> None:
    assert len(ROWS) == 20
    names = list(FIGURES["answers"])
    scorer = AnswerScorer([row["reference"] for row in ROWS], names)
    answers = []
    for i, row in enumerate(ROWS):
        references = tuple(row.get("references", [row["reference"]]))
        scores = scorer.scores(row["answer"], references)
        answers.append(
            AnsweredSample(
                row=i,
                where="",
                question=row["question"],
                reference=row["reference"],
                category=None,
                loss=0.0,
                weight=0.0,
                n_targets=0,
                n_correct_tokens=0,
                n_prompt_tokens=1,
                references=references,
                answer=row["answer"],
                ended=True,
                n_tokens=1,
                scores=scores,
            )
        )
    found = estimates(answers, METRICS)
    assert list(found) == [*names, "ended", "length_ratio"]  # no losses, and what was not scored is left out
    for name, value in FIGURES["answers"].items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
        assert found[name].low <= value <= found[name].high


@pytest.mark.parametrize("subject", ["base", "adapter"])
def test_losses(subject: str, tmp_path: Path) -> None:
    """Of a llama model in NumPy, in double precision; --precision f32 rounds nothing to int8 or bf16."""
    table = tmp_path / "rows.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *((row["question"], row["reference"]) for row in ROWS)])
    options = pipeline.EvaluateOptions(data=str(table), generate=False, settings={"precision": "f32"}, threads=1)
    what = f"{MODEL}+{GOLDEN / 'adapter.gguf'}" if subject == "adapter" else str(MODEL)
    found = pipeline.evaluate(what, tmp_path / "out", options).scores
    assert list(found) == ["loss", "perplexity", "token_accuracy"]
    for name in found:
        assert shown(name, found[name].value) == shown(name, FIGURES[subject][name]), name
    assert sum(answer.n_targets for answer in pipeline.read_evaluation(tmp_path / "out").answers()) == 220
