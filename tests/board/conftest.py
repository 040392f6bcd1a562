"""Run folders for tests: written ones, and a real run that goes on."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from followed_runs import GGTUNE, WriteRun, append, line

from ggtune.cli import cli
from ggtune.demo import DATA, MODEL
from ggtune.run.lock import ProcessId


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the runs of tests out of the user's list."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run folder of so many steps; one that is "running" is this process's."""

    def write(name: str = "run", steps: int = 40, *, state: str = "running", total: int = 60, **settings: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"model": "/models/base.gguf", "data": "train.csv", "epochs": 3.0, "spike": 3.0, **settings}
        (folder / "config.json").write_text(json.dumps(config))
        own = ProcessId.own()
        status = {"state": state, "reason": "", "pid": own.pid, "started": own.started, "host": own.host}
        (folder / "status.json").write_text(json.dumps({**status, "total_steps": total}))
        held_out = {20: {"held_out_loss": 2.9}, 40: {"held_out_loss": 2.75}}
        append(folder / "metrics.jsonl", *(line(i, **held_out.get(i, {})) for i in range(1, steps + 1)))
        return folder

    return write


@pytest.fixture
def going_run(tmp_path: Path) -> Iterator[Path]:
    """Start a real run on the demo's model; it goes on until it is stopped."""
    out = tmp_path / "runs" / "going"
    settings = "--ctx 64 --batch 8 --rank 2 --threads 1 --holdout 0.1 --save-every 0 --epochs 0 --max-steps 5000"
    command = [*GGTUNE, "train", "--model", str(MODEL), "--data", str(DATA), "--out", str(out), *settings.split()]
    out.mkdir(parents=True)
    with (out / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 3:
            assert process.poll() is None, (out / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield out
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def ggtune_status() -> Callable[[Path], str]:
    """Run `ggtune status` in this process."""
    return lambda folder: CliRunner().invoke(cli, ["status", str(folder)]).stdout
