"""Every model that a command can't work with ends in an error for the user: never in an abort, whatever the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from architectures import files as architectures

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests/engine")]
import refused_models  # noqa: E402

from fuzzing import native  # noqa: E402

RUN_COMMANDS = Path(__file__).with_name("run_commands.py")
CORPUS = sorted((ROOT / "tests/fuzz/corpus/load-model").iterdir())
LORA = ROOT / "tests/golden/llama-lora.gguf"
COMMANDS = ("train", "plan", "ask", "export-lora", "package")
DATA = ("--ctx", "32", "--rank", "1", "--threads", "1", "--template", "plain")

USABLE = {"byte-token-missing", "metadata-not-utf8"}  # findings of the fuzz campaign that were messages only
# What doesn't answer a prompt, by what the message says of it.
MUTE = {
    "it has an encoder": {"t5", "t5encoder", "encoder-decoder"},
    "it is a diffusion model": {"dream", "llada", "llada-moe", "rnd1"},
    "it reads a text as a whole": {
        *("bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"),
        *("nomic-bert", "nomic-bert-moe"),
    },
    "expert_gating_func is missing": {"mixture"},
}
# What llama.cpp itself asserts of these tiny models when it is asked to compute with them.
ASSERTS = {"plm"}

Result = tuple[int, str, str]  # status, output, error output


def command_line(command: str, model: Path, folder: Path) -> list[str]:
    out = str(folder / f"{command} {model.stem}")
    data = str(folder / "table.csv")
    return {
        "train": ["train", "--model", str(model), "--data", data, "--out", out, "--max-steps", "1", *DATA],
        "plan": ["plan", "--model", str(model), "--data", data, *DATA],
        "ask": ["ask", "Why?", "--model", str(model), "-n", "2", "--threads", "1", "--template", "plain"],
        "export-lora": ["export-lora", "--model-base", str(model), "--lora", str(LORA), "--model-out", out],
        "package": ["package", str(model), "--name", "x", "--no-store", "--out", out],
    }[command]


def run(command_lines: Sequence[list[str]]) -> list[Result]:
    """Run all in one process; what ends it fails the test."""
    done = subprocess.run(
        [sys.executable, RUN_COMMANDS], input=json.dumps(command_lines), capture_output=True, text=True, check=False
    )
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if len(results) < len(command_lines):
        pytest.fail(f"ended with {done.returncode}: ggtune {' '.join(command_lines[len(results)])}\n{done.stderr}")
    return [(status, output, error) for status, output, error in results]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refused")
    (folder / "table.csv").write_text("question,answer\n" + "".join(f"Why {i}?,So {i}.\n" for i in range(8)))
    return folder


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    made = {name: architectures.write_model(folder, name) for name in architectures.NAMES}
    made["encoder-decoder"] = refused_models.write_encoder_decoder(folder / "encoder-decoder.gguf")
    made["mixture"] = refused_models.write_mixture(folder / "mixture.gguf")
    for recipe in CORPUS:
        place = folder / "corpus"
        place.mkdir(exist_ok=True)
        (place / "input").write_bytes(recipe.read_bytes())
        _, model, _ = native.write_parts(place / "input")
        made[recipe.name] = model.rename(folder / f"{recipe.name}.gguf")
    return made


@pytest.fixture(scope="module")
def results(models: Mapping[str, Path], folder: Path) -> dict[tuple[str, str], Result]:
    """What the commands say of the models that can't be trained; `plan` of all."""
    planned = run([command_line("plan", model, folder) for model in models.values()])
    found = {("plan", name): result for name, result in zip(models, planned, strict=True)}
    refused = [name for name in models if found["plan", name][0] != 0]
    others = [(command, name) for name in refused for command in COMMANDS if command != "plan"]
    said = run([command_line(command, models[name], folder) for command, name in others])
    return found | dict(zip(others, said, strict=True))


def test_refusals_are_errors_for_the_user(
    results: dict[tuple[str, str], Result], models: Mapping[str, Path], folder: Path
) -> None:
    wrong = []
    for (command, name), (status, _, error) in results.items():
        out = Path(folder / f"{command} {models[name].stem}")
        if status == 0:
            continue
        lines = error.splitlines()
        good = (
            status == 1
            and lines[0].startswith("Error: ")
            and len(lines) <= 4
            and str(models[name]) in error
            and "Traceback" not in error
            and "unexpected" not in error
            and str(ROOT) not in error.replace(str(LORA), "")
            and not out.exists()
        )
        if not good:
            wrong.append(f"{command} {name}: {status} {error} {'wrote' * out.exists()}")
    assert not wrong, "\n".join(wrong)


def test_what_cannot_be_planned_cannot_be_trained(results: dict[tuple[str, str], Result]) -> None:
    refused = [name for (command, name), (status, _, _) in results.items() if command == "plan" and status != 0]
    assert len(refused) > 30
    assert {path.name for path in CORPUS} - USABLE <= set(refused)
    for name in refused:
        assert results["train", name][0] == 1, name
        assert results["train", name][2] == results["plan", name][2]


def test_what_is_damaged_is_refused_by_every_command(results: dict[tuple[str, str], Result]) -> None:
    accepted = [
        f"{command} {path.name}"
        for command in COMMANDS
        for path in CORPUS
        if path.name not in USABLE and results[command, path.name][0] == 0
    ]
    assert not accepted
    assert not [
        f"{command} {name}"
        for command in COMMANDS
        for name in ("encoder-decoder", "mixture")
        if not results[command, name][0]
    ]


def test_what_does_not_answer(results: dict[tuple[str, str], Result]) -> None:
    """Everything else of llama.cpp's can be asked, trainable or not."""
    mute = set().union(*MUTE.values())
    for reason, names in MUTE.items():
        for name in names:
            for command in ("ask", "package"):
                assert reason in results[command, name][2], (command, name)
    damaged = {path.name for path in CORPUS}
    said = {name: status for (command, name), (status, _, _) in results.items() if command == "ask"}
    assert {name for name, status in said.items() if status} - damaged - {"rwkv7"} == mute | ASSERTS


def test_advice(results: dict[tuple[str, str], Result]) -> None:
    """A refusal says what to do, for every reason that there is."""
    advice = (
        "Convert the model again",
        "convert the model again",
        "docs/architectures.md",
        "Give a model that",
        "of another model",
        "Fetch or write",
        "choose from",
        "get ",
    )
    without = [
        f"{name}: {error}"
        for name, (status, _, error) in results.items()
        if status and not any(a in error for a in advice)
    ]
    assert not without, "\n".join(without)
