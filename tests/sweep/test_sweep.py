"""Sweeps of the demo model: who goes on, against plain trainings; kills, interruptions, trials that come to no good."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ggtune.cli import cli
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.files import WriteError
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.metrics import read_metrics
from ggtune.run.progress import Reporter
from ggtune.run.status import read_status
from ggtune.sweep import SweepOptions, SweepResult, prepare, sweep
from ggtune.sweep.sheet import Attempt, read_results, read_sheet
from ggtune.sweep.space import parse_axis
from ggtune.train.halving import cost_line
from ggtune.train.session import fine_tune

RATES = "5e-4,4e-3,1e30"  # the last diverges
SETTINGS: dict[str, Any] = {
    "model": str(MODEL),
    "ctx": 64,
    "batch": 2,
    "rank": 2,
    "targets": ("attn_q", "attn_v"),
    "epochs": 10.0,
    "holdout": "2",
    "threads": 1,
    "save_every": "2",
}


class Told(Reporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.n_steps = 0

    def step(self, record: Any, **_: Any) -> None:
        self.n_steps += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the runs of tests out of the user's list."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows: three steps an epoch of those that are trained on, so that a trial has 30."""
    path: Path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("".join(DATA.read_text().splitlines(keepends=True)[:9]))
    return path


def started(table: Path, folder: Path, **changes: Any) -> tuple[SweepResult, Told]:
    told = Told()
    axes = changes.pop("axes", [parse_axis("lr", RATES)])
    ready = prepare({**SETTINGS, "data": str(table), **changes}, axes, reporter=told)
    return sweep(ready.sheet, folder, SweepOptions(), told), told


@pytest.fixture(scope="session")
def swept(table: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A sweep that nothing has disturbed."""
    return started(table, tmp_path_factory.mktemp("swept") / "sweep")[0]


def decided(folder: Path) -> list[dict[str, Any]]:
    """What results.json says, but for the time that it took."""
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["trials"]
    return [{name: value for name, value in row.items() if name != "elapsed_s"} for row in rows]


def adapters(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/adapter.gguf"))}


def test_the_better_one_goes_on_and_the_rest_is_left(swept: SweepResult) -> None:
    slow, fast, wild = (swept.results.outcomes[trial.name] for trial in swept.sheet.trials)
    assert [(outcome.state, outcome.steps) for outcome in (slow, fast)] == [("left", 12), ("finished", 30)]
    assert wild.state == "diverged"
    assert wild.reason.startswith("The run has diverged: the training loss is")
    assert fast.losses[0] is not None
    assert slow.losses[0] is not None
    assert fast.losses[0] < slow.losses[0]
    assert swept.best == (swept.sheet.trials[1], fast)
    assert [trial.name[:2] for trial, _ in swept.ranking] == ["02", "01", "03"]


def test_figures_are_those_of_the_runs(swept: SweepResult) -> None:
    for trial in swept.sheet.trials[:2]:
        outcome = swept.results.outcomes[trial.name]
        records = read_metrics(swept.folder / trial.name / "metrics.jsonl")
        measured = {record["step"]: record["held_out_loss"] for record in records if "held_out_loss" in record}
        assert min(measured, key=lambda step: measured[step]) == outcome.best_step
        assert outcome.best_held_out == measured[outcome.best_step or 0]
        assert outcome.held_out_before == records[0]["held_out_before"]
        assert (
            outcome.losses
            == [min(v for s, v in measured.items() if s <= 12), outcome.best_held_out][: len(outcome.losses)]
        )
        assert set(measured) >= {12}  # at the end of the first rung
        assert max(b - a for a, b in zip([0, *measured], measured, strict=False)) <= 3  # and once an epoch


def test_a_trial_is_a_training_of_its_settings(swept: SweepResult, tmp_path: Path) -> None:
    trial = swept.sheet.trials[1]
    config = swept.sheet.config(trial)
    assert (config.lr, config.rank, config.seed, config.holdout) == (4e-3, 2, 0, "2")
    fine_tune(config, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "adapter.gguf").read_bytes() == (swept.folder / trial.name / "adapter.gguf").read_bytes()
    states = [
        load_checkpoint(next((swept.folder / t.name).glob("checkpoint-*.gguf"))).state for t in swept.sheet.trials[:2]
    ]
    assert states[0].data_fingerprint == states[1].data_fingerprint
    assert read_status(swept.folder / swept.sheet.trials[0].name).state == "interrupted"


def test_tables_and_the_plot(swept: SweepResult) -> None:
    lines = (swept.folder / "results.csv").read_text().splitlines()
    assert lines[0] == "trial,lr,held_out_loss,best_step,steps,total_steps,elapsed_s,state,reason"
    name, lr, loss, step, steps, total, _, state, _ = lines[1].split(",")
    best = swept.best
    assert best is not None
    assert (name, lr, steps, total, state) == ("02-lr0.004", "0.004", "30", "30", "finished")
    assert (float(loss), int(step)) == (best[1].best_held_out, best[1].best_step)
    assert lines[3].startswith("03-lr1e+30,1e+30,")
    assert ',diverged,"The run has diverged' in lines[3]
    assert (swept.folder / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert read_status(swept.folder).state == "finished"


def test_the_two_best_are_compared_sample_by_sample(swept: SweepResult) -> None:
    close, slow, fast = swept.closeness, *(swept.results.outcomes[trial.name] for trial in swept.sheet.trials[:2])
    assert close is not None
    assert close.second.name == "01-lr0.0005"
    assert close.n_samples == 2
    assert slow.best_held_out is not None
    assert fast.best_held_out is not None
    # the products of another packing are rounded otherwise
    assert close.difference.value == pytest.approx(slow.best_held_out - fast.best_held_out, abs=5e-3)
    assert not close.difference.is_significant  # of two samples nothing can be told
    assert "that may be chance" in close.line()
    sure = dataclasses.replace(close, difference=dataclasses.replace(close.difference, p_value=0.01))
    assert sure.line().endswith("on 2 held-out samples (p = 0.010).")


def test_going_on_with_one_that_is_done_changes_nothing(swept: SweepResult, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    told = Told()
    sheet = read_sheet(folder)
    assert sheet == swept.sheet
    assert sheet is not None
    sweep(sheet, folder, SweepOptions(), told)
    assert told.n_steps == 0
    assert decided(folder) == decided(swept.folder)


@pytest.mark.parametrize(("number", "state"), [(0, "waiting"), (1, "left"), (2, "waiting")])
def test_killed_before_a_rung_was_noted(swept: SweepResult, tmp_path: Path, number: int, state: str) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    results = read_results(folder, swept.sheet)
    outcome = results.outcomes[swept.sheet.trials[number].name]
    outcome.losses.pop()
    outcome.state = state
    results.write(folder, swept.sheet)
    told = Told()
    sweep(swept.sheet, folder, SweepOptions(), told)
    assert told.n_steps == 0  # it is there
    assert decided(folder) == decided(swept.folder)


def test_a_diverged_trial_with_a_good_start_does_not_go_on(swept: SweepResult, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    slow, fast, wild = (trial.name for trial in swept.sheet.trials)
    shutil.rmtree(folder / fast)
    results = read_results(folder, swept.sheet)
    results.outcomes[fast].losses, results.outcomes[fast].state = [], "waiting"
    results.outcomes[wild].losses = [0.1]  # before it went wrong
    results.write(folder, swept.sheet)
    again = sweep(swept.sheet, folder, SweepOptions(plot=False)).results.outcomes
    assert (again[slow].state, again[fast].state, again[wild].state) == ("left", "finished", "diverged")


def test_a_process_that_dies_at_the_same_place(swept: SweepResult, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    name = swept.sheet.trials[0].name
    shutil.rmtree(folder / name)
    results = read_results(folder, swept.sheet)
    results.outcomes[name].losses, results.outcomes[name].state = [], "waiting"
    for deaths, state in ((3, "failed"), (2, "left")):
        here = tmp_path / state
        shutil.copytree(folder, here)
        results.attempt = Attempt(name, 0, step=0, n=deaths)
        results.write(here, swept.sheet)
        outcome = sweep(swept.sheet, here, SweepOptions(plot=False)).results.outcomes[name]
        assert outcome.state == state
        assert ("was killed 3 times" in outcome.reason) == (state == "failed")
        assert json.loads((here / "results.json").read_text())["attempt"] is None


def test_a_trial_that_cannot_be_built_is_a_row(table: Path, tmp_path: Path) -> None:
    result, told = started(table, tmp_path / "sweep", axes=[parse_axis("rank", "1,100000")], epochs=1.0)
    good, bad = (result.results.outcomes[trial.name] for trial in result.sheet.trials)
    assert good.state == "finished"
    assert bad.state == "failed"
    assert any("02-rank100000 will fail" in note for note in told.notes)
    assert bad.reason
    assert result.best is not None
    assert result.best[1] is good


def test_a_full_disk_ends_the_sweep_and_it_goes_on(
    swept: SweepResult, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ggtune.sweep import trial as module

    real, calls = module.train, iter(range(10))

    def full(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise GgtuneError("could not be saved") from WriteError("the disk is full")
        return real(*arguments)

    monkeypatch.setattr(module, "train", full)
    with pytest.raises(GgtuneError, match="could not be saved"):
        started(table, tmp_path / "sweep")
    assert [row["state"] for row in decided(tmp_path / "sweep")] == ["left", "waiting", "waiting"]
    assert read_status(tmp_path / "sweep").state == "failed"
    sweep(swept.sheet, tmp_path / "sweep")
    assert decided(tmp_path / "sweep") == decided(swept.folder)
    assert adapters(tmp_path / "sweep") == adapters(swept.folder)


def test_epochs_of_their_own(table: Path, tmp_path: Path) -> None:
    ready = prepare({**SETTINGS, "data": str(table)}, [parse_axis("epochs", "10,20"), parse_axis("lr", "1e-4,1e-3")])
    assert [trial.total_steps for trial in ready.sheet.trials] == [30, 30, 60, 60]
    assert [trial.eval_every for trial in ready.sheet.trials] == ["3", "3", "3", "3"]
    assert [rung.n_trials for rung in ready.sheet.rungs] == [4, 1]
    assert ready.seconds is not None
    given = prepare({**SETTINGS, "data": str(table), "eval_every": "7"}, [parse_axis("lr", RATES)])
    assert given.sheet.config(given.sheet.trials[0]).eval_every == "7"


@pytest.mark.parametrize(
    ("changes", "axes", "message"),
    [
        ({"holdout": "0"}, "lr=1e-4,1e-3", "compares held-out losses, and --holdout is 0"),
        ({}, "lr=1e-4", "needs two trials at least"),
        ({}, "lr=1e-4..1e-3", "say by --trials"),
        ({}, "lr=1e-4,0", "--lr must be above 0"),
        ({}, "lr=0,1e-4", "--lr must be above 0"),
        ({"data": "missing.csv"}, "lr=1e-4,1e-3", "missing.csv"),
    ],
)
def test_bad_settings_before_anything_is_trained(table: Path, changes: dict[str, Any], axes: str, message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        prepare({**SETTINGS, "data": str(table), **changes}, [parse_axis(*axes.split("="))])


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(table: Path) -> Callable[..., list[str]]:
    given = ["--ctx", "64", "--batch", "2", "--targets", "attn_q,attn_v", "--epochs", "10", "--holdout", "2"]
    given += ["--threads", "1", "--save-every", "2", "--rank", "2", "--lr", RATES]

    def arguments(folder: Path, *more: str) -> list[str]:
        return ["sweep", str(table), "--model", str(MODEL), "--out", str(folder), *given, *more]

    return arguments


def ggtune(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_what_is_said_at_the_end(swept: SweepResult, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    result = ggtune("resume", str(folder))
    assert result.exit_code == 0, result.output
    best = swept.results.outcomes["02-lr0.004"]
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["trial", "lr", "held-out", "at", "step", "steps", "time"]
    assert lines[1].split()[:5] == ["02", "0.004", f"{best.best_held_out:.4f}", str(best.best_step), "30/30"]
    assert lines[2].endswith("left early")
    assert "diverged: The run has diverged: the training loss is" in lines[3]
    assert f"Best: lr 0.004: held-out loss {best.best_held_out:.4f} after step {best.best_step}" in result.stdout
    assert f"Merge it: ggtune export-lora {folder}/02-lr0.004 -o merged.gguf" in result.stdout


def test_other_settings_and_folders_in_use(
    swept: SweepResult, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    assert "already holds a sweep" in ggtune(*command(folder)).output
    other = ggtune(*command(folder, "--resume", "--epochs", "20", "--lr", "1e-3,1e-4"))
    assert other.exit_code == 1
    assert "--lr was 0.0005,0.004,1e+30 and is 0.001,0.0001" in other.output
    assert "started with other settings" in ggtune("resume", str(folder), "--ctx", "32").output
    longer = ggtune("resume", str(folder), "--max-steps", "50")
    assert longer.exit_code == 1
    assert "--max-steps was 0 and is 50" in longer.output
    assert ggtune(*command(folder, "--resume", "--trials", "2")).exit_code == 2
    assert "holds no sweep" in ggtune(*command(tmp_path / "none", "--resume")).output
    run = ggtune(*command(folder / "01-lr0.0005"))
    assert "holds a run: give another --out" in run.output
    assert ggtune(*command(folder, "--resume", "--threads", "2")).exit_code == 0
    assert decided(folder) == decided(swept.folder)


def test_missing_arguments(tmp_path: Path) -> None:
    result = ggtune("sweep", "--out", str(tmp_path / "x"))
    assert result.exit_code == 2
    assert "Missing argument DATA and --model" in result.output
    assert not (tmp_path / "x").exists()


def test_started_anew_over_an_earlier_one(swept: SweepResult, tmp_path: Path, table: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(swept.folder, folder)
    (folder / "mine.txt").write_text("kept")
    ready = prepare({**SETTINGS, "data": str(table), "epochs": 1.0}, [parse_axis("rank", "1,2")])
    sweep(ready.sheet, folder, SweepOptions(overwrite=True, plot=False))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("01-rank1", "02-rank2", "evaluation", "mine.txt", "results.csv", "results.json", "status.json", "sweep.json"),
    ]


def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "ggtune", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def steps_of(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(read_metrics(path)) for path in folder.glob("*/metrics.jsonl")}


def wait_until(process: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


def test_killed_again_and_again(swept: SweepResult, tmp_path: Path, command: Callable[..., list[str]]) -> None:
    folder = tmp_path / "sweep"
    moments: list[Callable[[], bool]] = [
        lambda: steps_of(folder).get("01-lr0.0005", 0) >= 5,
        lambda: steps_of(folder).get("02-lr0.004", 0) >= 7,
        lambda: steps_of(folder).get("02-lr0.004", 0) >= 19,  # it was chosen to go on
    ]
    arguments = command(folder, "--no-plot")
    for moment in moments:
        process = start(arguments)
        wait_until(process, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        arguments = ["resume", str(folder)]
    assert ggtune("resume", str(folder)).exit_code == 0
    assert decided(folder) == decided(swept.folder)
    assert adapters(folder) == adapters(swept.folder)


def test_interrupted_by_a_signal(swept: SweepResult, tmp_path: Path, command: Callable[..., list[str]]) -> None:
    folder = tmp_path / "sweep"
    process = start(command(folder))
    wait_until(process, lambda: steps_of(folder).get("01-lr0.0005", 0) >= 3)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"Go on with: ggtune resume {folder}" in error.decode()
    assert read_status(folder).state == "interrupted"
    assert json.loads((folder / "results.json").read_text())["attempt"] is None
    assert ggtune(*command(folder, "--resume", "--no-plot")).exit_code == 0
    assert decided(folder) == decided(swept.folder)


# -- what the report says --------------------------------------------------------------------------------------------


def test_the_cost_of_a_sweep_around_a_run(swept: SweepResult, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(swept.folder / "01-lr0.0005", run)
    records = read_metrics(run / "metrics.jsonl")
    records[-1]["elapsed_s"] = 1440.0  # 12 of 30 steps: an hour for all
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    line = cost_line(run)
    # 6 go a third of the way, 2 the rest
    assert line.startswith("A sweep of 6 over learning rate and rank would take about 3:20 h: ggtune sweep ")
    assert line.endswith("--lr 0.00017,0.0005,0.0015 --rank 2,4")
    (run / "metrics.jsonl").unlink()
    assert cost_line(run) == ""
    assert cost_line(tmp_path) == ""
