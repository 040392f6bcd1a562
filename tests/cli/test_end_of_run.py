"""The last lines of a run and its exit status: the truth about how it went."""

import json

import pytest

from ggtune.demo import MODEL
from ggtune.gguf.adapter_file import read_adapter

SMALL = ["--ctx", 64, "--batch", 2, "--rank", 2, "--threads", 1]


@pytest.fixture
def start(ggtune, tmp_path, table):  # type: ignore[no-untyped-def]
    """``train`` or ``run`` into tmp_path/run."""

    def call(command, *options):  # type: ignore[no-untyped-def]
        data = [table] if command == "run" else ["--data", table]
        return ggtune(command, *data, "--model", MODEL, "--out", tmp_path / "run", *SMALL, *options)

    return call


def last_line(result) -> str:  # type: ignore[no-untyped-def]
    return str(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", ["train", "run"])
def test_few_steps_are_said_last(start, command) -> None:  # type: ignore[no-untyped-def]
    result = start(command, "--holdout", 0, "--max-steps", 2)
    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("Only 2 steps were taken, too few to learn much")


def test_finetune_says_it_too(ggtune, tmp_path, table, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    result = ggtune("finetune", "--model-base", MODEL, "--train-data", table, "--adam-iter", 2, *SMALL)
    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("Only 2 steps")


def test_a_missed_stop_loss_is_said_last(start) -> None:  # type: ignore[no-untyped-def]
    options = ["--holdout", 0, "--epochs", 14, "--lr", 2e-3, "--stop-loss", 0.01, "--save-every", 0]
    result = start("train", *options)
    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("--stop-loss 0.01 was missed: the training loss is ")
    assert "--epochs 28" in last_line(result)


def test_stop_loss_alone_goes_on_until_it_is_reached(start) -> None:  # type: ignore[no-untyped-def]
    result = start("train", "--holdout", 0, "--stop-loss", 2.5, "--stop-patience", 2)
    assert result.exit_code == 0, result.output
    assert "Rate: 0.0039, constant" in result.stdout
    assert "or after 1000 steps (333 epochs)" in result.stdout
    assert "the training loss stayed under 2.5 for 2 steps in a row" in result.stdout
    assert "missed" not in result.stdout


@pytest.mark.parametrize("lr", ["0.1", "1e30"])  # finite, and not finite any more
@pytest.mark.parametrize("command", ["train", "run"])
def test_divergence_has_a_status_of_its_own(start, tmp_path, command, lr) -> None:  # type: ignore[no-untyped-def]
    result = start(command, "--holdout", 0, "--max-steps", 16, "--lr", lr, "--schedule", "constant")
    assert result.exit_code == 3, result.output
    text = last_line(result) if lr == "0.1" else result.stderr
    assert "the run has diverged" in text.lower()
    assert "smaller --lr" in text
    assert not (tmp_path / "run/model.gguf").exists()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed"
    assert "has diverged" in status["reason"]


def test_run_takes_the_best(start, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from ggtune.train import loop

    losses = iter([5.0, 4.0, 4.5])
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(losses))
    # a gain that is no more than what the merge rounds would fail the run
    result = start("run", "--holdout", 1, "--epochs", 2, "--save-every", 0, "--lr", 0.005)
    assert result.exit_code == 0, result.output
    out = tmp_path / "run"
    assert f"Adapter: {out}/adapter-best.gguf: step 3, the best held-out loss (4.0000; the last, step " in result.stdout
    assert read_adapter(out / "adapter-best.gguf").notes["step"] == "3"
    assert json.loads((out / "status.json").read_text())["command"]["packaging"]["which"] == "auto"


def test_which_is_kept_for_resume(start, ggtune, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from ggtune.train import loop

    losses = iter([5.0, 4.0, 4.5, 4.7])
    monkeypatch.setattr(loop.Loop, "_evaluate", lambda self: next(losses))
    result = start("run", "--holdout", 1, "--epochs", 2, "--save-every", 0, "--which", "last")
    assert f"Adapter: {tmp_path}/run/adapter.gguf: step 6, the last" in result.stdout
    again = ggtune("resume", tmp_path / "run", "--epochs", 3)
    assert again.exit_code == 0, again.output
    assert f"Adapter: {tmp_path}/run/adapter.gguf: step 9, the last" in again.stdout


@pytest.mark.parametrize("command", ["run", "train", "resume", "finetune"])
def test_the_status_is_in_the_help(ggtune, command) -> None:  # type: ignore[no-untyped-def]
    assert "3 where the run has diverged" in " ".join(ggtune(command, "--help").stdout.split())


def test_train_goes_on_from_an_adapter(start, ggtune, tmp_path, table) -> None:  # type: ignore[no-untyped-def]
    assert start("train", "--holdout", 0, "--max-steps", 1).exit_code == 0
    first = tmp_path / "run/adapter.gguf"
    options = ["--data", table, "--model", MODEL, "--ctx", 64, "--batch", 2, "--threads", 1, "--holdout", 0]
    again = ggtune("train", *options, "--from", first, "--out", tmp_path / "again", "--max-steps", 1)
    assert again.exit_code == 0, again.output
    assert f"Going on from {first}: 56 linears" in again.stdout
    assert read_adapter(tmp_path / "again/adapter.gguf").rank == 2
    resumed = ggtune("resume", tmp_path / "again", "--max-steps", 2)
    assert resumed.exit_code == 0, resumed.output
    other = ggtune("train", "--resume", "--from", tmp_path / "x.gguf", "--out", tmp_path / "again")
    assert other.exit_code == 1
    assert "--from-adapter was" in other.stderr


def test_ask_refuses_an_adapter_of_another_base(start, ggtune, tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert start("train", "--holdout", 0, "--max-steps", 1).exit_code == 0
    other = tmp_path / "other.gguf"
    content = bytearray(MODEL.read_bytes())
    content[-1] ^= 1  # a weight of the last tensor
    other.write_bytes(content)
    asked = ["ask", "Why?", "--model", other, "--lora", tmp_path / "run/adapter.gguf", "--max-tokens", 1]
    result = ggtune(*asked)
    assert result.exit_code == 1
    assert "another base" in result.stderr
    forced = ggtune(*asked, "--force")
    assert forced.exit_code == 0, forced.output
    assert forced.stderr.startswith("warning: ")
