"""Files of the runs, and runs that several tests look at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner
from config_table import BASE, File
from learned import ROWS, SYSTEM, TEMPLATE, LearnedRun
from recorded import Seen, train

from ggtune import TrainConfig, _core, fine_tune
from ggtune.cli import cli
from ggtune.demo import MODEL
from ggtune.train import loop

Settled = Callable[..., dict[str, Any]]


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("question,answer\n" + "".join(f'"{question}","{answer}"\n' for question, answer in rows))


def write_other_model(path: Path) -> None:
    """The demo's model with the rows of one matrix in another order."""
    tensor = next(each for each in gguf.GGUFReader(MODEL).tensors if each.name == "blk.3.ffn_up.weight")
    begin, half = int(tensor.data_offset), int(tensor.n_bytes) // 2
    data = bytearray(MODEL.read_bytes())
    data[begin : begin + half], data[begin + half : begin + 2 * half] = (
        data[begin + half : begin + 2 * half],
        data[begin : begin + half],
    )
    path.write_bytes(data)


@pytest.fixture(autouse=True)
def own_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the runs of tests out of the user's list."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / ".state"))


@pytest.fixture(autouse=True, scope="session")
def simulated_devices() -> Iterator[None]:
    """The same as those of tests/devices: a process reads them once. None is used that is not named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGTUNE_SIMULATED_DEVICES", "256M,256M,256M:half,256M:lacks=ROPE,1M")
        _core.devices()
        yield


@pytest.fixture(scope="session")
def wiring_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what :class:`config_table.File` names."""
    folder = tmp_path_factory.mktemp("wiring")
    write_table(folder / "table.csv", ROWS)
    write_table(folder / "one_row.csv", ROWS[:1])
    (folder / "columns.csv").write_text(
        "question,answer,frage,antwort\n" + "Which one?,This one.,Welches?,Dieses.\n" * 4
    )
    for name, mark in (("marked.txt", "@@"), ("sft.txt", "<SFT>")):
        (folder / name).write_text("".join(f"{mark}This is part {i} of the text.\n" for i in range(3)))
    (folder / "plain.txt").write_text(" ".join(f"Number {i} is the one after {i - 1}." for i in range(30)))
    rows = [f"What falls {i}?,Water falls.,It is about rain.,{weight}\n" for i, weight in enumerate((0.25, 1, 1, 0.25))]
    (folder / "about.csv").write_text("question,answer,about,importance\n" + "".join(rows))
    (folder / "page.csv").write_bytes("question,answer\nЧто?,Это вода.\nКто?,Это я.\n".encode("cp1251"))
    (folder / "twice.csv").write_text(
        "question,answer\nOne?,The first.\nTwo?,The second.\nSix?,Sixth.\nOne?,The first.\n"
    )
    good = [{"question": f"Good {i}?", "answer": "Good it is."} for i in range(2)]
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in good) + '{"question": 5}\n')
    turns = [("user", "Hello?"), ("assistant", "Hello to you."), ("user", "Who is it?"), ("assistant", "It is me.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    (folder / "turns.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    for message in messages[1::2]:
        message["reasoning_content"] = "They ask."
    (folder / "thoughts.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    write_other_model(folder / "other.gguf")
    config = TrainConfig(**{**BASE, "rank": 2, "lr": 1e-2, "holdout": "0"})
    fine_tune(config, folder / "run", quiet=True)
    (folder / "run" / "adapter.gguf").rename(folder / "adapter.gguf")
    return folder


@pytest.fixture(scope="session")
def settled(wiring_files: Path) -> Settled:
    """Return settings with the files in them."""

    def settle(values: dict[str, Any]) -> dict[str, Any]:
        def path(value: Any) -> Any:
            return str(wiring_files / value.name) if isinstance(value, File) else value

        return {
            name: tuple(map(path, value)) if isinstance(value, tuple) else path(value) for name, value in values.items()
        }

    return settle


@pytest.fixture(scope="session")
def base_run(tmp_path_factory: pytest.TempPathFactory, settled: Settled) -> Callable[[dict[str, Any]], Seen]:
    """The run that a change is compared with; each is made once."""
    runs: dict[str, Seen] = {}

    def run(changes: dict[str, Any]) -> Seen:
        values = settled({**BASE, **changes})
        key = repr(sorted(values.items()))
        if key not in runs:
            runs[key] = train(tmp_path_factory.mktemp("base") / "run", values)
        return runs[key]

    return run


@pytest.fixture(scope="session")
def learned_run(wiring_files: Path) -> LearnedRun:
    """With a template and a system text that are not the model's own.

    Where GGTUNE_LEARNED_RUN names a folder it is made there, once: scripts/mutate.py takes it for many faults.
    """
    folder = Path(os.environ.get("GGTUNE_LEARNED_RUN", wiring_files / "learned"))
    if (folder / "proof.json").exists():
        return LearnedRun(folder, TEMPLATE)
    how = ["--template", TEMPLATE, "--system", SYSTEM, "--ctx", 96, "--batch", 2, "--rank", 4, "--lr", 4e-3]
    end = ["--epochs", 45, "--holdout", 0, "--threads", 1, "--save-every", 0, "--name", "m", "--out", folder]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(wiring_files / ".state"))
        table = folder.with_name(folder.name + ".csv")
        write_table(table, ROWS)
        arguments = ["run", table, "--model", MODEL, *how, *end]
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return LearnedRun(folder, TEMPLATE)


@pytest.fixture(scope="session")
def run_of_two_epochs(tmp_path_factory: pytest.TempPathFactory, wiring_files: Path) -> Path:
    """The folder of a run whose first epoch was the better one, as its held-out losses tell."""
    folder = tmp_path_factory.mktemp("two") / "run"
    losses = iter([5.0, 4.0, 4.5])  # before, and after each epoch
    values = {**BASE, "data": str(wiring_files / "table.csv"), "holdout": "2", "batch": 2, "epochs": 2.0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_evaluate", lambda self: next(losses))
        fine_tune(TrainConfig(**{**values, "max_steps": 0}), folder, quiet=True)
    return folder
