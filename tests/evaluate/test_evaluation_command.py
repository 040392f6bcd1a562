"""``ggtune eval`` as it is called: what it prints, its exit status, an interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quick_runs import Trained

from ggtune.cli import cli
from ggtune.demo import DATA
from ggtune.scores.metrics import METRICS


@pytest.fixture
def folder(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


def ggtune_eval(*args: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, args), "--threads", "1"])


def scores_in(text: str) -> list[str]:
    """The lines behind the one that says what was measured."""
    lines = text.splitlines()
    begin = next(i for i, line in enumerate(lines) if "questions answered" in line) + 1
    return lines[begin : begin + len(METRICS)]


def test_a_table_with_intervals(folder: Path) -> None:
    found = ggtune_eval(folder, "--max-tokens", 16)
    assert found.exit_code == 0, found.output
    table = scores_in(found.stdout)
    assert [line.strip().rsplit("  ", 1)[0].strip() for line in table] == [metric.title for metric in METRICS.values()]
    assert all(re.search(r" \d+\.\d+ \[\d+\.\d+, \d+\.\d+\]$", line) for line in table), found.stdout
    assert "2 samples, 2 questions answered" in found.stdout
    assert f"{folder}/evaluation/best/answers.jsonl" in found.stdout
    again = ggtune_eval(folder, "--max-tokens", 16)
    assert "holds this evaluation already" in again.stdout
    assert scores_in(again.stdout) == table


def test_json_and_one_sample(folder: Path, tmp_path: Path) -> None:
    found = ggtune_eval(f"{folder}@last", "--no-generate", "--max-samples", 1, "--json", "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    values = json.loads(found.stdout)
    assert values == json.loads((tmp_path / "out/evaluation.json").read_text())
    assert values["scores"]["loss"]["low"] is None
    shown = ggtune_eval(f"{folder}@last", "--no-generate", "--max-samples", 1, "--out", tmp_path / "out")
    assert re.search(r"Loss \(nats per token\) +\d\.\d{4} \[\?\]", shown.stdout)
    assert "One sample says nothing about others" in shown.stdout


def test_categories(trained: Trained, tmp_path: Path) -> None:
    table = tmp_path / "kinds.csv"
    rows = [
        ("What do bees make?", "Honey.", "animals"),
        ("What is ice?", "Water.", "matter"),
        ("Is tin soft?", "Yes.", "matter"),
    ]
    table.write_text("question,answer,category\n" + "".join(",".join(row) + "\n" for row in rows))
    found = ggtune_eval(f"{trained.folder}@last", "--data", table, "--max-tokens", 8, "--out", tmp_path / "out")
    _, _, shown = found.stdout.partition("F1 of words by category:\n")
    assert re.match(r"  animals \(1\)  0\.\d{3} \[\?\]\n  matter \(2\)   0\.\d{3} \[0\.\d{3}, \d\.\d{3}\]\n", shown)


def test_wrong_usage(folder: Path, tmp_path: Path) -> None:
    for args, status, message in (
        ((folder, "--data", DATA, "--split", "all"), 2, "leave it or --data out"),
        ((folder, "--max-tokens", 0), 2, "--max-tokens"),
        ((folder, "--metrics", "accuracy"), 1, "there is no score accuracy"),
        ((tmp_path / "nothing",), 1, "no such file or folder"),
        ((folder / "adapter.gguf",), 1, "give its base with it"),
        ((folder, "--split", "training", "--system", "x", "--template", "mistral"), 1, "no place for a system text"),
    ):
        found = ggtune_eval(*args)
        assert found.exit_code == status, found.output
        assert message in found.stderr
    assert not (folder / "evaluation").exists()


def test_other_settings(folder: Path) -> None:
    assert ggtune_eval(folder, "--no-generate").exit_code == 0
    other = ggtune_eval(folder, "--no-generate", "--seed", 1)
    assert other.exit_code == 1
    assert "--seed was 0 and is 1" in other.stderr
    assert "--overwrite" in other.stderr
    assert ggtune_eval(folder, "--no-generate", "--seed", 1, "--overwrite").exit_code == 0


def test_an_interruption_keeps_what_was_measured(trained: Trained, tmp_path: Path) -> None:
    """A signal in the middle of the answers, then the same command once more."""
    out = tmp_path / "out"
    args = [f"{trained.folder}@last", "--data", str(DATA), "--max-tokens", "256", "--out", str(out), "--threads", "1"]
    command = [sys.executable, "-m", "ggtune", "eval", *args, "--max-samples", "24"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    given = out / "given.part.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (given.exists() and given.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    n_given = len(given.read_text().splitlines())
    assert 0 < n_given < 24
    again = ggtune_eval(*args, "--max-samples", 24)
    assert again.exit_code == 0, again.output
    assert f"Going on: {n_given} of 24 answers are there." in again.stdout
    assert len((out / "answers.jsonl").read_text().splitlines()) == 24
    assert not given.exists()
