"""Event logs: what they hold against metrics.jsonl, over interruptions and divergence; failing disks and clients."""

import errno
import functools
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from event_files import events, hyperparameters, restarts, scalars, texts

from file_limits import largest_file
from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.run.checkpoint import newest_checkpoint
from ggtune.run.event_logs.facts import Past, Record, RunFacts, past_of, plain_settings
from ggtune.run.event_logs.facts import scalars as scalars_of
from ggtune.run.event_logs.logs import EventLogs
from ggtune.run.event_logs.tensorboard import TensorBoardLog
from ggtune.run.event_logs.thread import LogThread
from ggtune.run.metrics import read_metrics
from ggtune.run.observer import Observer
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.train import loop
from ggtune.train.session import fine_tune, prepare

STARTED = "2026-01-02T03:04:05"
_FOLDER = tempfile.TemporaryDirectory()  # goes with the process


@functools.cache
def table() -> Path:
    """Eight rows of the demo's data: six to train on in three steps an epoch, two held out."""
    path = Path(_FOLDER.name) / "table.csv"
    path.write_text("".join(DATA.read_text().splitlines(keepends=True)[:9]))
    return path


def config(**changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(table()),
        "ctx": 64,
        "batch": 2,
        "rank": 2,
        "targets": ("attn_q",),
        "epochs": 2.0,
        "warmup": 0.0,
        "save_every": "2",
        "holdout": "2",
        "threads": 1,
        "log": ("tensorboard",),
    }
    return TrainConfig(**{**values, **changes})


class PausedAt(Observer):
    def __init__(self, step: int | None) -> None:
        self._at = step

    def pause(self, record: Record) -> str | None:
        return "enough for now" if record["step"] == self._at else None


def run(out: Path, settings: TrainConfig, *, pause_at: int | None = None) -> str:
    """Train, or go on; return what was shown."""
    shown = io.StringIO()
    outputs = Outputs.folder(out)
    found = newest_checkpoint(outputs.checkpoint)
    session = prepare(settings, outputs, checkpoint=found[1] if found else None)
    session.loop(Progress(shown), observers=[PausedAt(pause_at)]).run()
    return shown.getvalue()


def numbers(records: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Steps and values of metrics.jsonl; step 1 tells of step 0."""
    found = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return [(0, records[0]["held_out_before"]), *found] if key == "held_out_loss" else found


def assert_same(out: Path) -> None:
    """The event log holds what metrics.jsonl holds, each step once and in order."""
    records, found = read_metrics(out / "metrics.jsonl"), scalars(out / "events")
    assert records
    for tag, key in (
        ("loss/training", "loss"),
        ("loss/smoothed", "smoothed_loss"),
        ("loss/held_out", "held_out_loss"),
        ("optimizer/lr", "lr"),
        ("optimizer/grad_norm", "grad_norm"),
        ("speed/tokens_per_second", "tokens_per_second"),
    ):
        expected, got = numbers(records, key), found[tag]
        assert [step for step, _ in got] == [step for step, _ in expected], tag
        assert [value for _, value in got] == pytest.approx([value for _, value in expected], rel=1e-6), tag


# -- TensorBoard -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without an interruption."""
    out: Path = tmp_path_factory.mktemp("whole") / "run"
    fine_tune(config(), out, quiet=True)
    return out


def test_event_files_hold_what_metrics_hold(whole: Path) -> None:
    assert_same(whole)
    assert len(list((whole / "events").iterdir())) == 1
    assert events(whole / "events")[0].file_version == "brain.Event:2"
    assert restarts(whole / "events") == [0]
    settings, has_ended = hyperparameters(whole / "events")
    assert has_ended
    assert settings["lr"] == 2e-4
    assert settings["targets"] == "attn_q"
    assert settings["skip_bad"] is False
    assert "alpha" not in settings  # not set
    ((step, text),) = texts(whole / "events")["settings/text_summary"]
    assert step == 0
    assert json.loads("\n".join(line[4:] for line in text.splitlines())) == pytest.approx(settings)


def test_a_run_that_goes_on_continues_its_log(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, config(), pause_at=3)
    assert_same(tmp_path)
    assert not hyperparameters(tmp_path / "events")[1]
    before = next((tmp_path / "events").iterdir()).name
    run(tmp_path, config())
    assert_same(tmp_path)
    assert hyperparameters(tmp_path / "events")[1]
    (after,) = (tmp_path / "events").iterdir()
    assert after.name > before  # read after it by a TensorBoard that is open
    assert scalars(tmp_path / "events")["loss/training"] == scalars(whole / "events")["loss/training"]


def test_times_of_steps_go_on_from_the_start(tmp_path: Path) -> None:
    run(tmp_path, config(), pause_at=3)
    run(tmp_path, config())
    times = [event.wall_time for event in events(tmp_path / "events") if event.step]
    assert times == sorted(times)
    assert time.time() - 60 < times[0] <= times[-1] <= time.time()


def test_a_log_that_is_asked_for_later_has_the_past(tmp_path: Path) -> None:
    run(tmp_path, config(log=()), pause_at=3)
    assert not (tmp_path / "events").exists()
    run(tmp_path, config())
    assert_same(tmp_path)
    run(tmp_path, config(log=("none",), epochs=3.0))
    assert scalars(tmp_path / "events")["loss/training"][-1][0] == 6


def test_an_earlier_runs_log_goes_with_it(tmp_path: Path) -> None:
    run(tmp_path, config(), pause_at=3)
    outputs = Outputs.folder(tmp_path)
    prepare(config(log=()), outputs).loop(Progress(io.StringIO()), overwrite=True, observers=[PausedAt(3)]).run()
    assert not (tmp_path / "events").exists()


def test_after_divergence_it_goes_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, calls = loop.Loop._update, iter(range(1, 1000))

    def failing(self: Any, loss: float, lr: float) -> float | None:
        # the gradient "overflows" at steps 4 to 6 of the first way
        return update(self, float("nan") if 4 <= next(calls) <= 6 else loss, lr)

    monkeypatch.setattr(loop.Loop, "_update", failing)
    assert "back to step 3" in run(tmp_path, config(epochs=3.0, schedule="constant"))
    assert_same(tmp_path)
    rates = [value for _, value in scalars(tmp_path / "events")["optimizer/lr"]]
    assert rates == pytest.approx([2e-4] * 3 + [1e-4] * 6)


def test_steps_that_were_dropped_have_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update, calls = loop.Loop._update, iter(range(1, 1000))
    monkeypatch.setattr(
        loop.Loop, "_update", lambda self, loss, lr: None if next(calls) == 2 else update(self, loss, lr)
    )
    run(tmp_path, config())
    assert_same(tmp_path)
    assert [step for step, _ in scalars(tmp_path / "events")["optimizer/grad_norm"]] == [1, 3, 4, 5, 6]


ANSWERS = [
    {"step": 0, "question": "What is # water?", "reference": "H2O", "answer": "a\nb", "ended": False},
    {"step": 0, "question": "Who?", "reference": "Curie", "answer": "Marie", "ended": True},
    {"step": 2, "question": "What is # water?", "reference": "H2O", "answer": "H2O", "ended": True},
    {"step": 2, "question": "Who?", "reference": "Curie", "answer": "Curie", "ended": True},
]
RECORDS = [
    {"step": step, "loss": 1 / step, "elapsed_s": float(step), "held_out_scores": {"f1": step / 10, "x": None}}
    for step in (1, 2, 3)
]


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    """Files of a run of three steps, with answers at two of them."""
    files = Outputs.folder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    files.metrics.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    files.samples.write_text("".join(json.dumps(line) + "\n" for line in ANSWERS))
    return files


def test_answers_and_scores(tmp_path: Path, outputs: Outputs) -> None:
    logs = EventLogs(["tensorboard"], outputs)
    logs.begin(tmp_path, config(), started=STARTED, step=2)
    logs.step(RECORDS[2])
    logs.answers(2, ANSWERS[2:])  # are there
    logs.answers(3, [{**ANSWERS[0], "step": 3, "answer": "late"}])
    logs.end("finished", "")
    assert logs.messages() == []
    folder = outputs.event_log("tensorboard")
    assert scalars(folder)["score/f1"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2)), (3, pytest.approx(0.3))]
    assert "score/x" not in scalars(folder)
    shown = texts(folder)
    assert [step for step, _ in shown["answers/1/text_summary"]] == [0, 2, 3]
    assert [step for step, _ in shown["answers/2/text_summary"]] == [0, 2]
    first = shown["answers/1/text_summary"][0][1]
    assert first.splitlines() == [
        *("**Question**", "", "    What is # water?", "", "**Reference**", "", "    H2O", "", "**Answer**", ""),
        *("    a", "    b", "", "(cut: it had not ended)"),
    ]
    assert shown["answers/2/text_summary"][1][1].endswith("    Curie")


def test_the_past_ends_where_it_is_asked_to(outputs: Outputs) -> None:
    past = past_of(outputs.metrics, outputs.samples, 1)
    assert [record["step"] for record in past.records] == [1]
    assert [line["step"] for line in past.answers] == [0, 0]


def test_settings_as_clients_take_them() -> None:
    given = {"a": None, "b": "", "c": [], "d": ["x", "y"], "e": ("z",), "f": False, "g": 0, "h": 0.5, "i": "text"}
    assert plain_settings(given) == {"d": "x,y", "e": "z", "f": False, "g": 0, "h": 0.5, "i": "text"}


def test_numbers_that_are_none() -> None:
    assert scalars_of({"loss": float("nan"), "lr": True, "epoch": "x", "grad_norm": 2}) == {"optimizer/grad_norm": 2.0}


# -- what goes wrong -------------------------------------------------------------------------------------------------


class Unsteady:
    """A log that is written to memory, and fails when told to."""

    def __init__(self) -> None:
        self.fails = False
        self.written: list[tuple[int, float]] = []
        self.state = ""

    def _check(self) -> None:
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin(self, facts: RunFacts, past: Past) -> None:
        self._check()
        self.written = [(record["step"], record["loss"]) for record in past.records]

    def step(self, record: Record) -> None:
        self._check()
        self.written.append((record["step"], record["loss"]))

    def answers(self, step: int, lines: Iterable[Record]) -> None:
        self._check()

    def end(self, state: str) -> None:
        self._check()
        self.state = state

    def abandon(self) -> None:
        pass


def test_after_a_failure_every_step_is_there_once(tmp_path: Path) -> None:
    log, steps = Unsteady(), [{"step": step, "loss": 1 / step} for step in range(1, 8)]
    facts = RunFacts(tmp_path, "run", {}, STARTED)
    on_disk: list[dict[str, Any]] = []
    told: list[str] = []

    def past(step: int) -> Past:
        return Past(tuple(record for record in on_disk if record["step"] <= step))

    thread = LogThread("the log", log, facts, past, retry_s=0.0)
    thread.begin(0)
    for record in steps:
        log.fails = record["step"] in (3, 4, 6)
        on_disk.append(record)
        thread.step(record)
        thread.wait()
        told += thread.messages()
    assert log.written == [(record["step"], record["loss"]) for record in steps]
    thread.close("finished")
    thread.join()
    assert log.state == "finished"
    assert told == [
        "warning: the log can't be written (OSError: [Errno 28] No space left on device): the run goes on, and it is "
        "tried again from time to time"
    ]


@pytest.mark.parametrize("heals", [True, False])
def test_at_the_end_it_is_tried_once_more(tmp_path: Path, heals: bool) -> None:
    log = Unsteady()
    log.fails = True
    thread = LogThread(
        "the log", log, RunFacts(tmp_path, "run", {}, STARTED), lambda step: Past(({"step": 1, "loss": 1.0},))
    )
    thread.begin(0)
    thread.step({"step": 1, "loss": 1.0})
    thread.wait()
    log.fails = not heals
    thread.close("interrupted")
    thread.join()
    told = thread.messages()
    assert (log.written, log.state) == (([(1, 1.0)], "interrupted") if heals else ([], ""))
    assert ["is not whole" in text for text in told] == ([False] if heals else [False, True])


def test_a_client_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    class Hanging(Unsteady):
        answers_at_last = threading.Event()

        def step(self, record: Record) -> None:
            self.answers_at_last.wait(15)
            self.answers_at_last.set()

    thread = LogThread("the log", Hanging(), RunFacts(tmp_path, "run", {}, STARTED), lambda step: Past(), close_s=0.1)
    thread.begin(0)
    began = time.monotonic()
    for step in range(1, 1000):
        thread.step({"step": step, "loss": 1.0})
    thread.close("finished")
    thread.join()
    assert time.monotonic() - began < 10
    assert "has not come to its end" in thread.messages()[0]


def test_a_full_disk_under_the_event_files(tmp_path: Path, outputs: Outputs) -> None:
    logs = EventLogs(["tensorboard"], outputs)
    folder = outputs.event_log("tensorboard")
    logs.begin(tmp_path, config(), started=STARTED, step=1)
    logs.wait()
    size = next(folder.iterdir()).stat().st_size
    with largest_file(size + 10):
        logs.step(RECORDS[1])
        logs.answers(2, ANSWERS[2:])  # is flushed
        logs.wait()
        (told,) = logs.messages()
    assert told.startswith(f"warning: the tensorboard log {folder} can't be written (OSError: [Errno 27]")
    logs.step(RECORDS[2])
    logs.end("finished", "")
    assert logs.messages() == []
    assert [step for step, _ in scalars(folder)["loss/training"]] == [1, 2, 3]
    assert [step for step, _ in texts(folder)["answers/1/text_summary"]] == [0, 2]


def test_a_run_on_a_full_disk_goes_on(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: TensorBoardLog) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TensorBoardLog, "_flush", full)
    shown = run(tmp_path, config())
    assert shown.count("No space left on device") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "adapter.gguf").read_bytes() == (whole / "adapter.gguf").read_bytes()
    monkeypatch.undo()
    run(tmp_path, config(epochs=3.0))
    assert_same(tmp_path)


def test_a_missing_library_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(GgtuneError, match=r"--log tensorboard needs tensorboardX: pip install .ggtune\[tensorboard\]"):
        prepare(config(), Outputs.folder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_unknown_logs() -> None:
    with pytest.raises(GgtuneError, match=r"--log knows no 'tensorbord': it takes tensorboard, wandb, mlflow, or none"):
        config(log=("tensorboard", "tensorbord"))
    with pytest.raises(GgtuneError, match="knows no 'none'"):
        config(log=("tensorboard", "none"))


def _wait_for_steps(process: "subprocess.Popen[bytes]", out: Path, n_steps: int) -> None:
    while len(read_metrics(out / "metrics.jsonl")) < n_steps:
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_signals(tmp_path: Path, signum: int) -> None:
    out = tmp_path / "run"
    arguments = ["--ctx", "64", "--batch", "2", "--rank", "2", "--epochs", "400", "--threads", "1", "--save-every", "3"]
    command = [*("train", "--model", MODEL, "--data", table(), "--out", out), *arguments, "--log", "tensorboard"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    ggtune = [sys.executable, "-m", "ggtune"]
    process = subprocess.Popen([*ggtune, *map(str, command)], env=environment, stdout=subprocess.DEVNULL)
    _wait_for_steps(process, out, 7)
    process.send_signal(signum)
    assert process.wait(60) == (128 + signum if signum == signal.SIGTERM else -signum)
    if signum == signal.SIGTERM:
        assert_same(out)
    subprocess.run(
        [*ggtune, "resume", str(out), "--max-steps", "60"], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    assert len(read_metrics(out / "metrics.jsonl")) >= 60
    assert_same(out)


# -- Weights & Biases, MLflow ----------------------------------------------------------------------------------------

TESTS = Path(__file__).parent
TRAIN = """
import io, sys
from pathlib import Path
sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]).parent)]
from test_event_logs import config, run
out = Path(sys.argv[1])
run(out, config(log=(sys.argv[2],)), pause_at=3)
print(run(out, config(log=(sys.argv[2],))))
"""
READ_WANDB = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
(path,) = Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")
data, at, whole = path.read_bytes(), 7, b""
rows, config, status = [], {}, None
while at + 7 <= len(data):  # a log as LevelDB's: blocks of 32 KiB, in which no header is cut
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
    whole += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind not in (1, 4):  # the record goes on
        continue
    record, whole = Record.FromString(whole), b""
    kind = record.WhichOneof("record_type")
    if kind == "history":
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        rows.append([record.history.step.num, items])
    elif kind == "run":
        config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
    elif kind == "exit":
        status = record.exit.exit_code
print(json.dumps([rows, config, status]))
"""
READ_MLFLOW = """
import json, os, sys
from pathlib import Path
os.environ["MLFLOW_ALLOW_FILE_STORE"] = os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
from mlflow import MlflowClient
client = MlflowClient(tracking_uri=(Path(sys.argv[1]) / "mlflow").resolve().as_uri())
(run,) = client.search_runs([client.get_experiment_by_name("ggtune").experiment_id])
history = {
    name: [[metric.step, metric.value] for metric in client.get_metric_history(run.info.run_id, name)]
    for name in run.data.metrics
}
print(json.dumps([history, run.data.params, run.info.status]))
"""


def _program(text: str, *arguments: object, cwd: Path) -> str:
    """Run a program in a process of its own: these clients start threads and services, and warn."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW"))}
    ran = subprocess.run(
        [sys.executable, "-c", text, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**environment, "HOME": str(cwd)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}: pip install {module}")


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    _needs("wandb")
    out = tmp_path / "run"
    assert "warning" not in _program(TRAIN, out, "wandb", TESTS, cwd=tmp_path)
    rows, settings, status = json.loads(_program(READ_WANDB, out, cwd=tmp_path).splitlines()[-1])
    records = read_metrics(out / "metrics.jsonl")
    for tag, key in (("loss/training", "loss"), ("loss/held_out", "held_out_loss")):
        assert [(step, items[tag]) for step, items in rows if tag in items] == numbers(records, key)
    assert settings["lr"] == 2e-4
    assert status == 0


def test_mlflow_folder(tmp_path: Path) -> None:
    _needs("mlflow")
    out = tmp_path / "run"
    assert "warning" not in _program(TRAIN, out, "mlflow", TESTS, cwd=tmp_path)
    history, settings, status = json.loads(_program(READ_MLFLOW, out, cwd=tmp_path).splitlines()[-1])
    records = read_metrics(out / "metrics.jsonl")
    for tag, key in (("loss/training", "loss"), ("loss/held_out", "held_out_loss")):
        assert [(step, value) for step, value in history[tag]] == numbers(records, key)
    assert settings["lr"] == "0.0002"
    assert status == "FINISHED"
