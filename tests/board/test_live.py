"""A run seen from outside: what is new, what is wrong, whatever happens to its files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from followed_runs import WriteRun, append, line
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ggtune.board import live as live_module
from ggtune.board.live import LiveRun
from ggtune.board.screen import frame
from ggtune.board.views import facts_of, parts_of, row_of


def looked(folder: Path) -> LiveRun:
    run = LiveRun(folder)
    while run.look():
        pass
    return run


def test_only_what_is_new_is_read_and_counted(write_run: WriteRun) -> None:
    folder = write_run()
    run = looked(folder)
    assert (run.history.n_records, run.model, run.data) == (40, "base.gguf", "train.csv")
    before = dict(run.versions)
    run.look()
    assert {**run.versions, "status": 0} == {**before, "status": 0}
    append(folder / "metrics.jsonl", line(41))
    run.look()
    assert run.history.last[-1]["step"] == 41
    assert run.status is not None
    assert (run.status.step, run.status.held_out_loss) == (41, 2.75)
    assert run.versions["figures"] == before["figures"] + 1
    assert run.versions["samples"] == before["samples"]


def test_an_ended_run_does_not_change(write_run: WriteRun) -> None:
    run = looked(write_run(state="finished"))
    before = dict(run.versions)
    os.utime(run.folder / "metrics.jsonl")  # its age is no change
    run.look()
    assert run.versions == before


def test_a_rewound_run_is_read_anew_at_once(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run()
    run = looked(folder)
    monkeypatch.setattr("ggtune.run.tail._LOOK_BYTES", 1000)
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:25]
    (folder / "new").write_text("\n".join(lines) + "\n")
    (folder / "new").replace(folder / "metrics.jsonl")
    seen = []
    while run.look():
        seen.append(run.history.n_records)
    assert set(seen) == {40}  # the old curve stays until the new one is whole
    assert run.history.n_records == 25
    assert run.history.best_held_out == (20, 2.9)


def test_warnings(write_run: WriteRun) -> None:
    folder = write_run()
    run = looked(folder)
    assert run.warnings == []
    append(folder / "metrics.jsonl", line(41, loss=50.0), line(42, loss=None, dropped="loss not finite"))
    (folder / "log.txt").write_text("step 41/60  epoch 2.05\nwarning: memory has grown\nSamples: 95\n")
    finding = {
        "kind": "overfitted",
        "text": "It has overfitted.",
        "advice": "Give fewer epochs.",
        "severity": "warning",
    }
    (folder / "diagnosis.json").write_text(json.dumps({"findings": [finding, 3, {"text": 4}]}))
    run.look()
    assert run.warnings == [
        "the loss of step 41 is 50, 19.0 times the smoothed 2.636",
        "step 42 was dropped: loss not finite",
        "memory has grown",
        "It has overfitted. Give fewer epochs.",
    ]
    assert list(run.log) == ["warning: memory has grown", "Samples: 95"]
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "spike": 0}))
    assert not any("times the smoothed" in text for text in looked(folder).warnings)


def test_a_held_out_loss_that_turns_up_is_named(write_run: WriteRun) -> None:
    folder = write_run()
    losses = [2.7, 2.9, 3.1, 3.2]
    append(folder / "metrics.jsonl", *(line(41 + i, held_out_loss=loss) for i, loss in enumerate(losses)))
    run = looked(folder)
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith("the held-out loss turns up (2.7000 after step 41, 3.1000 now)")
    # what the run itself has said is not said twice
    (folder / "log.txt").write_text(f"warning: {run.warnings[0]}\n")
    run.look()
    assert len(run.warnings) == 1


def test_what_going_on_is_worth(write_run: WriteRun, ggtune_status: Callable[[Path], str]) -> None:
    folder = write_run(total=400)
    assert looked(folder).forecast() == []
    more = {step: {"held_out_loss": 2 + 2 * 0.5 ** (step / 20)} for step in range(60, 201, 20)}
    append(folder / "metrics.jsonl", *(line(i, **more.get(i, {})) for i in range(41, 201)))
    run = looked(folder)
    first, *others = run.forecast()
    assert first.startswith("Outlook: another epoch is worth about 0.0")
    assert "the 200 steps that are left" in first
    assert first in "".join(text.plain for text in frame(run, 200, 60))
    assert first in ggtune_status(folder)
    assert parts_of(run, {})["forecast"] == " ".join([first, *others])
    assert run.curve() is run.curve()  # fitted once
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "finished"}))
    ended = looked(folder).forecast()
    assert len(ended) == 1
    assert "that are left" not in ended[0]


def test_a_run_without_steps_for_long_is_named(write_run: WriteRun) -> None:
    folder = write_run()
    run = looked(folder)
    os.utime(folder / "metrics.jsonl", (0, (folder / "metrics.jsonl").stat().st_mtime - 600))
    run.look()
    assert any("no step for 0:10:00" in text for text in run.warnings)


def test_answers_are_kept_first_and_latest(write_run: WriteRun) -> None:
    folder = write_run()
    for step in range(0, 100, 10):
        for question in ("a?", "b?"):
            append(folder / "samples.jsonl", {"step": step, "question": question, "answer": f"{question}{step}"})
    append(folder / "samples.jsonl", {"step": 90, "question": "b?", "answer": "again", "ended": False}, {"step": 1})
    run = looked(folder)
    a, b = run.answers.questions()
    assert [answer.step for answer in a.answers] == [0, 50, 60, 70, 80, 90]
    assert (b.answers[-1].text, b.answers[-1].ended) == ("again", False)


def test_folders_that_go_and_files_that_can_not_be_read(write_run: WriteRun, tmp_path: Path) -> None:
    assert "no run folder" in looked(tmp_path / "none").problem
    folder = write_run()
    run = looked(folder)
    shutil.rmtree(folder)
    run.look()
    assert run.status is None
    assert "no run folder" in run.problem
    folder = write_run("hostile")
    garbage = b'\xff\xfe{"step": \n[[[[\n{"step": 1e999}\n{"step": null, "loss": {}}\n'
    for name in ("metrics.jsonl", "samples.jsonl", "config.json", "status.json", "diagnosis.json", "log.txt"):
        (folder / name).write_bytes(garbage)
    assert looked(folder).status is not None
    for name in ("samples.jsonl", "log.txt", "diagnosis.json", "config.json", "status.json"):
        (folder / name).unlink()
        (folder / name).mkdir()
    assert looked(folder).status is not None
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    looked(folder)


VALUES = st.one_of(
    st.none(), st.booleans(), st.text(max_size=3), st.just([1]), st.floats(), st.integers(-3, 200),
    st.sampled_from([1e308, -1e308, 1e-320, 10**400, 2**62, -0.0]),
)  # fmt: skip
NAMES = ("step", "epoch", "loss", "smoothed_loss", "lr", "grad_norm", "tokens_per_second", "elapsed_s", "dropped",
         "held_out_loss", "held_out_before", "memory_bytes")  # fmt: skip
RECORDS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=12)


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(RECORDS, st.dictionaries(st.sampled_from(["epochs", "spike", "data", "model"]), VALUES), VALUES)
def test_no_figures_can_break_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], config: dict[str, Any], total: object
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for i, record in enumerate(records):
        record.setdefault("step", i + 1)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "total_steps": total, "reason": total}))
    append(folder / "metrics.jsonl", *records)
    run = looked(folder)
    assert run.status is not None
    assert frame(run, 80, 40)
    live_module.as_json([row_of("id", "name", run), facts_of(run), parts_of(run, {})])


@pytest.mark.parametrize("total", [True, -5, "x", 10**30, None, 0])
def test_a_strange_number_of_steps(write_run: WriteRun, total: object) -> None:
    folder = write_run()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "total_steps": total}))
    run = looked(folder)
    live_module.as_json([row_of("id", "name", run), facts_of(run)])
    assert frame(run, 80, 24)
