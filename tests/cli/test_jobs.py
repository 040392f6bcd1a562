"""Runs as processes: signals, background, lock, torture."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from ggtune.demo import DATA, MODEL
from ggtune.errors import GgtuneError
from ggtune.run import lock as lock_module
from ggtune.run.lock import Lock, ProcessId, holder_of
from ggtune.run.registry import known_runs, register

GGTUNE = [sys.executable, "-m", "ggtune"]
SETTINGS = "--ctx 64 --batch 8 --rank 2 --threads 1 --holdout 0 --save-every 0 --epochs 0 --max-steps 100000"
ROOT = Path(__file__).parents[2]


def start_command(out: Path) -> list[str]:
    return [*GGTUNE, "train", "--model", str(MODEL), "--data", str(DATA), "--out", str(out), *SETTINGS.split()]


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[bytes]"]]:
    """Start a run into tmp_path/run, its output in tmp_path/log; returns after its second step."""
    processes = []

    def start(*before: str, shell: bool = False) -> "subprocess.Popen[bytes]":
        log = tmp_path / "log"
        command = [*before, *start_command(tmp_path / "run")]
        with log.open("wb") as output:
            process = subprocess.Popen(
                f"exec {shlex.join(command)}" if shell else command,
                stdout=output,
                stderr=output,
                shell=shell,
                # the tests themselves may run under nohup
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
            )
        processes.append(process)
        wait_for(lambda: b"step 2/" in log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_saves_and_the_run_goes_on(started, ggtune, tmp_path, name, status) -> None:  # type: ignore[no-untyped-def]
    process, out = started(), tmp_path / "run"
    process.send_signal(getattr(signal, name))
    sent = time.monotonic()
    assert process.wait(timeout=30) == status
    assert time.monotonic() - sent < 5
    shown = (tmp_path / "log").read_text()
    assert f"Interrupted by {name} after step" in shown
    assert f"ggtune resume {out}" in shown
    assert "Traceback" not in shown
    done = steps(out)[-1]
    assert f"interrupted  step {done}/100000" in ggtune("status").stdout
    again = ggtune("resume", out, "--max-steps", done + 1)
    assert again.exit_code == 0, again.stderr
    assert steps(out) == list(range(1, done + 2))
    assert "finished" in ggtune("status", out).stdout


def test_nohup_ignores_sighup(started, tmp_path) -> None:  # type: ignore[no-untyped-def]
    process = started("nohup")
    before = steps(tmp_path / "run")[-1]
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: steps(tmp_path / "run")[-1] > before + 2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


def test_a_background_shell_ignores_sigint(started, ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """As `ggtune train ... &` in a script: Ctrl-C there is for others, and `ggtune stop` ends it."""
    out = tmp_path / "run"
    process = started("sh", "-c", "trap '' INT; exec \"$@\"", "sh")
    before = steps(out)[-1]
    process.send_signal(signal.SIGINT)
    wait_for(lambda: steps(out)[-1] > before + 2)
    assert process.poll() is None
    stopped = subprocess.Popen([*GGTUNE, "stop", out], stdout=subprocess.PIPE, text=True)
    assert process.wait(timeout=30) == 143
    assert "interrupted" in stopped.communicate(timeout=30)[0]


def test_a_second_sigint_leaves_at_once(tmp_path: Path) -> None:
    # a handler that takes long: saving hangs until the second signal comes
    code = """
import os, signal, sys, time
from ggtune.run.interrupts import Interrupts
with Interrupts():
    os.kill(os.getpid(), signal.SIGINT)
    print("first", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("second", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (130, "first\n")


def test_a_signal_before_the_training(tmp_path: Path) -> None:
    # reading the data waits for a writer that never comes
    fifo = tmp_path / "table.csv"
    os.mkfifo(fifo)
    command = [*GGTUNE, "train", "--model", MODEL, "--data", fifo, "--out", tmp_path / "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: psutil.Process(process.pid).num_threads() >= 1 and os.access(fifo, os.R_OK))
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 143
        assert process.stderr is not None
        assert process.stderr.read() == "Interrupted.\n"
    assert not (tmp_path / "run").exists()


def test_detach_status_watch_stop_resume(ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    started = ggtune(*start_command(out)[3:], "--detach")
    assert started.exit_code == 0, started.output
    assert str(out / "log.txt") in started.stdout
    try:
        wait_for(lambda: "step 3/" in (out / "log.txt").read_text())
        listed = ggtune("status").stdout
        assert f"{out}: running  step" in listed
        for word in ("epoch", "loss", "% over", "ETA", "memory"):
            assert word in listed
        one = ggtune("status", out).stdout
        for word in ("running, process", "Loss", "ETA", "Memory", "Last step"):
            assert word in one
        refused = ggtune("train", "--model", MODEL, "--data", DATA, "--out", out, "--overwrite")
        assert refused.exit_code == 1
        assert "a run is going on" in refused.stderr
        watching = subprocess.Popen([*GGTUNE, "watch", out], stdout=subprocess.PIPE, text=True)
    finally:
        stopped = ggtune("stop", out)
    assert stopped.exit_code == 0, stopped.output
    assert "interrupted  step" in stopped.stdout
    assert "by SIGTERM" in stopped.stdout
    watched = watching.communicate(timeout=30)[0].splitlines()
    assert "interrupted" in watched[-1]
    assert ggtune("stop", out).exit_code == 1
    done = steps(out)[-1]
    again = ggtune("resume", out, "--max-steps", done + 2, "--detach")
    assert again.exit_code == 0, again.output
    wait_for(lambda: "Stopped after step" in (out / "log.txt").read_text())
    assert steps(out) == list(range(1, done + 3))


def test_a_job_that_can_not_begin_shows_why_and_leaves_nothing(ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("train", "--model", "none.gguf", "--data", DATA, "--out", tmp_path / "a" / "run", "--detach")
    assert result.exit_code == 1
    assert "none.gguf" in result.stderr
    assert not (tmp_path / "a").exists()


def test_a_killed_run_is_known_as_dead_and_started_anew(started, ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    process, out = started(), tmp_path / "run"
    process.kill()
    process.wait()
    assert "dead" in ggtune("status", out).stdout
    result = ggtune("resume", out, "--max-steps", 2)  # there is no checkpoint yet
    assert result.exit_code == 0, result.output
    assert "starting from the beginning" in result.stdout
    assert steps(out) == [1, 2]


def test_run_goes_on_to_the_package(ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    common = ["--model", MODEL, "--ctx", 64, "--rank", 2, "--threads", 1, "--epochs", 1, "--out", out, "--name", "bees"]
    assert ggtune("run", table, *common).exit_code == 0
    for name in ("model.gguf", "Modelfile"):
        (out / name).unlink()
    result = ggtune("resume", out)
    assert result.exit_code == 0, result.output
    assert "ollama create bees" in result.stdout
    assert (out / "model.gguf").exists()


def test_resume_of_nothing(ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = ggtune("resume", tmp_path / "none")
    assert result.exit_code == 1
    assert "holds no run" in result.stderr
    assert ggtune("status", tmp_path / "none").exit_code == 1


# -- lock and registry -----------------------------------------------------------------------------------------------


def test_the_lock_is_held_by_living_processes_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    own = ProcessId.own()
    dead = [
        {"pid": own.pid, "started": own.started - 100, "host": own.host},  # the number used anew
        {"pid": 2**22 + 1, "started": own.started, "host": own.host},
        {"pid": own.pid},
        [],
    ]
    for left_behind in dead:
        path.write_text(json.dumps(left_behind))
        assert holder_of(path) is None
        with Lock(path):
            assert holder_of(path) == own
        assert not path.exists()


def test_of_many_processes_one_gets_the_lock(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from ggtune.errors import GgtuneError
from ggtune.run.lock import Lock
try:
    with Lock(Path({str(tmp_path / "lock")!r})):
        print("taken", flush=True)
        sys.stdin.read()
except GgtuneError as error:
    print(error, flush=True)
"""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    said = [process.stdout.readline() for process in processes]  # type: ignore[union-attr]
    for process in processes:
        process.communicate()
    assert [line.strip() for line in said].count("taken") == 1
    assert sum("a run is going on" in line for line in said) == 3


def test_without_locks_of_the_kernel_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "fcntl", None)
    path = tmp_path / "lock"
    with Lock(path), pytest.raises(GgtuneError, match="a run is going on"):
        Lock(path).__enter__()
    path.write_text(json.dumps({**asdict(ProcessId.own()), "started": 1.0}))
    with Lock(path):
        assert holder_of(path) == ProcessId.own()


def test_the_registry_forgets_folders_that_are_gone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        register(tmp_path / name)
    register(tmp_path / "a")
    (tmp_path / "b").rmdir()
    assert known_runs() == [tmp_path / "a"]


# -- torture ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_killed_at_random_moments_it_ends_the_same(name: str) -> None:
    command = [sys.executable, ROOT / "scripts/torture.py", "--kills", "3", "--steps", "20", "--window", "0.2"]
    command += ["--signal", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical" in done.stdout
