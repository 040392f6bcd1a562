"""When held-out samples are measured and questions asked, when that ends a run, and who is told."""

import dataclasses
import io
import itertools
import json
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.run.checkpoint import load_checkpoint, newest_checkpoint
from ggtune.run.interrupts import RunInterruptedError
from ggtune.run.metrics import read_metrics
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.run.status import read_status_file
from ggtune.setting_texts import EvalInterval
from ggtune.train import loop
from ggtune.train.chosen import chosen_adapter
from ggtune.train.result import Result
from ggtune.train.session import fine_tune, prepare
from ggtune.train.verdict import verdicts

CLOCK = {"tokens_per_second", "elapsed_s", "eval_s", "sample_s", "memory_bytes"}


def config(**changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(DATA),
        "ctx": 64,
        "batch": 16,
        "rank": 2,
        "lr": 2e-3,
        "epochs": 0.0,
        "max_steps": 12,
        "warmup": 0.0,
        "save_every": "0",
        "holdout": "4",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


def run(out: Path, settings: TrainConfig, observers: Sequence[Observer] = ()) -> tuple[Result, str]:
    """Train, going on where there is a checkpoint; the result and what was shown."""
    shown = io.StringIO()
    outputs = Outputs.folder(out)
    found = newest_checkpoint(outputs.checkpoint)
    session = prepare(settings, outputs, checkpoint=found[1] if found else None)
    result = session.loop(Progress(shown), observers=observers).run()
    return result, shown.getvalue()


def scripted(monkeypatch: pytest.MonkeyPatch, losses: Iterable[float]) -> None:
    """Let the held-out losses be these: before the training, then each time."""
    rest = iter(losses)
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(rest))


def measured(out: Path) -> list[int]:
    return [record["step"] for record in read_metrics(out / "metrics.jsonl") if "held_out_loss" in record]


def answers(out: Path) -> list[dict[str, Any]]:
    path = out / "samples.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_clock(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in CLOCK} for record in read_metrics(out / "metrics.jsonl")]


# -- when it is due --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps_per_epoch", "due"),
    [
        ("3", 10, [3, 6, 9, 12, 15, 18]),
        ("1ep", 10, [10, 20]),
        ("0.5ep", 5, [3, 5, 8, 10, 13, 15, 18, 20]),
        (".1ep", 10, list(range(1, 21))),
        ("0.3ep", 10, [3, 6, 9, 12, 15, 18]),
        ("2EP", 7, [14]),
        ("0", 10, []),
        ("0ep", 10, []),
    ],
)
def test_intervals_of_steps_and_epochs(text: str, steps_per_epoch: int, due: list[int]) -> None:
    interval = EvalInterval.parse(text)
    assert [step for step in range(1, 21) if interval.is_due(step, steps_per_epoch, 1e9)] == due
    assert interval.times(20, steps_per_epoch, 1.0) == len(due)


def test_an_interval_of_time() -> None:
    interval = EvalInterval.parse("2m")
    assert [interval.is_due(1, 10, s) for s in (0.0, 119.9, 120.0)] == [False, False, True]
    assert interval.times(100, 10, 12.0) == 10


@pytest.mark.parametrize("text", ["", "half", "0.5", "1e", "-1", "1ep2", "ep"])
def test_no_interval(text: str) -> None:
    with pytest.raises(GgtuneError, match=r"--eval-every is wrong: .* a share of an epoch such as 0\.5ep"):
        config(eval_every=text)


@pytest.mark.parametrize(("every", "steps"), [("1ep", [4, 8, 10]), ("0.5ep", [2, 4, 6, 8, 10]), ("0", [10])])
def test_measured_when_due_and_at_the_end(tmp_path: Path, every: str, steps: list[int]) -> None:
    fine_tune(config(eval_every=every, max_steps=10), tmp_path, quiet=True)
    assert measured(tmp_path) == steps


def test_measured_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine_tune(config(eval_every="0.000001s", max_steps=3), tmp_path, quiet=True)
    assert measured(tmp_path) == [1, 2, 3]
    fine_tune(config(eval_every="1h", max_steps=3), tmp_path / "seldom", quiet=True)
    assert measured(tmp_path / "seldom") == [3]


def test_it_changes_nothing(tmp_path: Path) -> None:
    """Neither measuring nor asking more often changes a bit of what is trained."""
    fine_tune(config(max_steps=6, dropout=0.1), tmp_path / "seldom", quiet=True)
    often = config(max_steps=6, dropout=0.1, eval_every="1", sample_every="2", early_stop_metric="f1")
    fine_tune(often, tmp_path / "often", quiet=True)
    one, other = (load_checkpoint(tmp_path / name / "checkpoint-6.gguf") for name in ("seldom", "often"))
    for name, values in one.adapter.tensors.items():
        np.testing.assert_array_equal(values, other.adapter.tensors[name])


def test_the_rate_of_tokens_leaves_evaluations_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = loop.Loop._evaluate

    def slow(self: Any) -> float:
        time.sleep(0.5)
        return evaluate(self)

    monkeypatch.setattr(loop.Loop, "_evaluate", slow)
    fine_tune(config(eval_every="1", max_steps=3), tmp_path, quiet=True)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert all(record["eval_s"] >= 0.5 for record in records)
    for before, after in itertools.pairwise(records):  # of the time between, both have a part of their own
        between_s = after["elapsed_s"] - before["elapsed_s"]
        assert after["n_tokens"] / after["tokens_per_second"] + before["eval_s"] <= between_s
    assert all(record["memory_bytes"] > 10 << 20 for record in records)


# -- when it ends a run ----------------------------------------------------------------------------------------------

LOSSES = [9.0, 5.0, 4.0, 4.5, 3.9, 4.1, 3.9, 8.0, 7.0, 6.0, 2.0, 2.0, 2.0]  # before, then after each step


def test_it_stops_and_hands_on_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, LOSSES)
    result, _ = run(tmp_path, config(eval_every="1", early_stop=3, keep=1))
    assert result.steps == 7  # 4.1, another 3.9 and 8.0 are no better than the first 3.9
    assert result.exhausted
    assert result.stop_reason == (
        "the held-out loss has not got better in 3 measurements in a row: the best was 3.9000, after step 4"
    )
    chosen = chosen_adapter(tmp_path)
    assert (chosen.step, chosen.held_out_loss) == (4, 3.9)
    assert "the best held-out loss (3.9000; the last, step 7, has 8.0000)" in chosen.reason
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4.gguf", "checkpoint-7.gguf"]
    assert verdicts(result) == []  # it ended as it was told to
    assert read_status_file(tmp_path / "status.json")["state"] == "finished"


def test_it_does_not_stop_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, LOSSES)
    result, _ = run(tmp_path, config(eval_every="1"))
    assert result.steps == 12
    assert not result.exhausted


def test_a_run_that_has_stopped_goes_on_with_more_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, LOSSES)
    run(tmp_path, config(eval_every="1", early_stop=3))
    assert run(tmp_path, config(eval_every="1", early_stop=3))[0].steps == 7
    result, _ = run(tmp_path, config(eval_every="1", early_stop=5))
    assert (result.steps, result.best_step) == (9, 4)
    result, _ = run(tmp_path, config(eval_every="1", early_stop=6))
    assert (result.steps, result.best_step) == (12, 10)


@pytest.mark.parametrize("call", [3, 5, 6, 7])  # the answers are 5 and 7
def test_a_signal_in_an_evaluation_changes_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Real losses, which rise with such a rate: two measurements after the first end the run."""
    settings = config(eval_every="1", early_stop=2, lr=0.1, schedule="constant", sample_every="2")
    whole, _ = run(tmp_path / "whole", settings)
    assert whole.exhausted
    assert whole.steps == 3
    allowed, calls = loop.Interrupts.allowed, iter(range(1, 1000))

    def hit(self: Any) -> Any:
        import sys

        if sys._getframe(1).f_code.co_name in ("held_out_loss", "_answers") and next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return allowed(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Interrupts, "allowed", hit)
        with pytest.raises(RunInterruptedError):
            run(tmp_path / "cut", settings)
    again, _ = run(tmp_path / "cut", settings)
    assert (again.steps, again.best_step, again.stop_reason) == (whole.steps, whole.best_step, whole.stop_reason)
    assert without_clock(tmp_path / "cut") == without_clock(tmp_path / "whole")
    assert answers(tmp_path / "cut") == answers(tmp_path / "whole")
    one, other = (load_checkpoint(tmp_path / name / f"checkpoint-{whole.steps}.gguf") for name in ("cut", "whole"))
    assert one.state.monitor == other.state.monitor
    for name, values in one.adapter.tensors.items():
        np.testing.assert_array_equal(values, other.adapter.tensors[name])


def test_the_turn_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the training loss falls all the while
    scripted(monkeypatch, [9.0, 4.0, 3.0, 3.02, 3.1, 3.2, 3.3, 2.9, 3.0, 3.1, 3.2, 3.3, 3.4])
    result, shown = run(tmp_path, config(eval_every="1", batch=60))
    told = [line for line in shown.splitlines() if "turns up" in line]
    assert len(told) == 2
    assert "held-out loss turns up (3.0000 after step 2, 3.2000 now) while the training loss falls" in told[0]
    assert "--early-stop 2" in told[0]
    assert "(2.9000 after step 7, 3.1000 now)" in told[1]
    (text,) = [text for text in verdicts(result) if "overfitted" in text]
    assert "its held-out loss was 2.9000 after step 7 and is 3.4000 now" in text


def test_a_rise_with_the_training_loss_is_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [9.0, 4.0, *(4.0 + n for n in range(1, 12))])
    result, shown = run(tmp_path, config(eval_every="1", batch=60, lr=1.0, schedule="constant"))
    assert "turns up" not in shown
    assert not result.turned_up


@pytest.mark.parametrize("name", ["early_stop", "eval_every", "early_stop_metric"])
def test_nothing_held_out_is_nothing_to_stop_by(tmp_path: Path, name: str) -> None:
    value: Any = {"early_stop": 2, "eval_every": "5", "early_stop_metric": "f1"}[name]
    with pytest.raises(GgtuneError, match=f"--{name.replace('_', '-')} needs held-out samples, and there are none"):
        prepare(config(holdout="0", **{name: value}), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_single_sample_is_never_held_out(tmp_path: Path) -> None:
    table = tmp_path / "one.csv"
    table.write_text("question,answer\nWhat is ice?,Frozen water.\n")
    with pytest.raises(GgtuneError, match="--early-stop needs held-out samples, and there are none"):
        prepare(config(data=str(table), holdout="0.05", early_stop=1), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# -- by a score ------------------------------------------------------------------------------------------------------


def test_the_best_is_that_of_the_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.25, 0.5, 0.5, 0.5, 0.25])
    scripted(monkeypatch, [9.0, 5.0, 4.0, 3.0, 3.5, 2.0])
    monkeypatch.setattr("ggtune.train.measuring.Measuring.scores", lambda self: {"f1": next(scores)})
    result, _ = run(tmp_path, config(eval_every="1", early_stop=2, early_stop_metric="f1"))
    assert (result.steps, result.best_step) == (5, 3)  # of equal scores the one with the lower loss
    assert "the held-out f1 has not got better in 2 measurements" in result.stop_reason
    chosen = chosen_adapter(tmp_path)
    assert "the best held-out f1 (0.5000; loss 3.0000; the last, step 5, has 2.0000)" in chosen.reason
    assert [record["held_out_scores"] for record in read_metrics(tmp_path / "metrics.jsonl")][1] == {"f1": 0.5}


def test_real_scores_of_a_model_that_learns(tmp_path: Path) -> None:
    """The demo learned until its training answers come out: of held-out rows that are among them they do."""
    table = tmp_path / "table.csv"
    rows = [("What is ice?", "Frozen water."), ("What is sand?", "Tiny stones.")]
    table.write_text("question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows))
    settings = {"data": str(table), "holdout": str(table), "batch": 2, "lr": 2e-2, "schedule": "constant", "rank": 8}
    found = {}
    for metric in ("exact_match", "token_accuracy"):
        out = tmp_path / metric
        fine_tune(config(**settings, eval_every="15", max_steps=30, early_stop_metric=metric), out, quiet=True)
        found[metric] = [r["held_out_scores"] for r in read_metrics(out / "metrics.jsonl") if "held_out_scores" in r]
    assert found["exact_match"][-1] == {"exact_match": 1.0, "f1": 1.0}
    assert found["token_accuracy"][-1] == {"token_accuracy": 1.0}
    first = settings | {"max_steps": 1, "lr": 1e-9, "early_stop_metric": "token_accuracy"}
    fine_tune(config(**first), tmp_path / "untrained", quiet=True)
    (record,) = read_metrics(tmp_path / "untrained" / "metrics.jsonl")
    assert 0.0 <= record["held_out_scores"]["token_accuracy"] < 0.7


def test_plain_text_has_no_answers(tmp_path: Path) -> None:
    text = tmp_path / "plain.txt"
    text.write_text("Ice is frozen water. " * 200)
    plain = config(data=str(text), sample_start="", loss_on="all")
    for changes, message in (
        ({"early_stop_metric": "f1"}, "--early-stop-metric f1: the held-out samples have no questions"),
        ({"sample_every": "2"}, "--sample-every: the data has no questions"),
    ):
        with pytest.raises(GgtuneError, match=message):
            prepare(dataclasses.replace(plain, **changes), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# -- fixed questions -------------------------------------------------------------------------------------------------


def test_answers_before_when_due_and_at_the_end(tmp_path: Path) -> None:
    _, shown = run(tmp_path, config(max_steps=7, sample_every="3", sample_questions="2"))
    lines = answers(tmp_path)
    assert [line["step"] for line in lines] == [0, 0, 3, 3, 6, 6, 7, 7]
    assert len({line["question"] for line in lines}) == 2
    assert set(lines[0]) == {"step", "epoch", "question", "reference", "answer", "ended", "n_tokens"}
    assert all(line["reference"] for line in lines)
    assert [line["epoch"] for line in lines[::2]] == [0.0, 0.75, 1.5, 1.75]
    sampled = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl") if "sample_s" in record]
    assert sampled == [3, 6, 7]
    assert f"step 3: {lines[2]['question']} -> " in shown


def test_questions_of_a_file(tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("What is ice?\n\nWhat is rust?\n")
    fine_tune(config(max_steps=1, sample_every="0.5ep", sample_questions=str(questions)), tmp_path / "run", quiet=True)
    lines = answers(tmp_path / "run")
    assert [(line["step"], line["question"]) for line in lines[:2]] == [(0, "What is ice?"), (0, "What is rust?")]
    assert {line["reference"] for line in lines} == {None}
    table = tmp_path / "questions.csv"
    table.write_text("question,answer\nWhat is ice?,Water.\n")
    fine_tune(config(max_steps=1, sample_every="1", sample_questions=str(table)), tmp_path / "two", quiet=True)
    assert {line["reference"] for line in answers(tmp_path / "two")} == {"Water."}
    with pytest.raises(GgtuneError, match=r"--sample-questions gone.txt: it is neither a number nor a file"):
        prepare(config(sample_every="1", sample_questions="gone.txt"), Outputs.folder(tmp_path / "three"))


def test_going_on_and_going_back_leave_each_answer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"sample_every": "2", "sample_questions": "1", "save_every": "2", "schedule": "constant", "keep": 0}
    run(tmp_path / "on", config(max_steps=6, **settings))
    for step in (5, 6):
        (tmp_path / "on" / f"checkpoint-{step}.gguf").unlink(missing_ok=True)
    run(tmp_path / "on", config(max_steps=6, **settings))
    assert [line["step"] for line in answers(tmp_path / "on")] == [0, 2, 4, 6]

    update, calls = loop.Loop._update, iter(range(1, 1000))

    def failing(self: Any, loss: float, lr: float) -> float | None:
        return update(self, float("nan") if 4 <= next(calls) <= 6 else loss, lr)

    monkeypatch.setattr(loop.Loop, "_update", failing)
    seen = Told()
    _, shown = run(tmp_path / "back", config(max_steps=6, **settings), [seen])
    assert "back to step 2" in shown
    assert [line["step"] for line in answers(tmp_path / "back")] == [0, 2, 4, 6]
    assert ("rewind", 2) in seen.calls


# -- observers -------------------------------------------------------------------------------------------------------


class Told(Observer):
    """Notes what it is told; pauses after a step."""

    def __init__(self, pause_at: int = 0) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._pause_at = pause_at

    def begin(self, folder: Path, config: TrainConfig, *, started: str, step: int) -> None:
        self.calls.append(("begin", folder.name, bool(started), step))

    def step(self, record: Mapping[str, Any]) -> None:
        self.calls.append(("step", record["step"]))

    def answers(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append(("answers", step, len(lines)))

    def rewind(self, step: int) -> None:
        self.calls.append(("rewind", step))

    def pause(self, record: Mapping[str, Any]) -> str | None:
        self.calls.append(("pause?", record["step"]))
        return "others were better" if record["step"] == self._pause_at else None

    def end(self, state: str, reason: str) -> None:
        self.calls.append(("end", state, reason))

    def messages(self) -> list[str]:
        return ["a message"] if self.calls[-1] == ("step", 1) else []


def test_observers_are_told_of_everything(tmp_path: Path) -> None:
    told = Told()
    settings = config(max_steps=3, eval_every="2", sample_every="2", sample_questions="1")
    result, shown = run(tmp_path / "run", settings, [told])
    assert told.calls == [
        ("begin", "run", True, 0),
        ("answers", 0, 1),
        ("step", 1),
        ("answers", 2, 1),
        ("step", 2),
        ("pause?", 2),
        ("answers", 3, 1),
        ("step", 3),
        ("pause?", 3),
        ("end", "finished", "all 3 steps are done"),
    ]
    assert "a message" in shown
    assert not result.paused


def test_a_pause_leaves_a_run_that_goes_on_as_if_nothing_were(tmp_path: Path) -> None:
    settings = config(max_steps=6, eval_every="2")
    run(tmp_path / "whole", settings)
    told = Told(pause_at=4)
    result, _ = run(tmp_path / "cut", settings, [told])
    assert (result.steps, result.paused, result.stop_reason) == (4, True, "others were better")
    assert told.calls[-1] == ("end", "interrupted", "others were better")
    status = read_status_file(tmp_path / "cut" / "status.json")
    assert (status["state"], status["reason"]) == ("interrupted", "others were better")
    run(tmp_path / "cut", settings, [Told()])
    assert without_clock(tmp_path / "cut") == without_clock(tmp_path / "whole")


def test_a_failure_is_told_to_observers(tmp_path: Path) -> None:
    told = Told()
    with pytest.raises(GgtuneError):
        run(tmp_path, config(lr=1e30, max_steps=30), [told])
    assert told.calls[-1][:2] == ("end", "failed")
    assert "--lr" in told.calls[-1][2]
