"""Every flag of llama.cpp's old ``finetune`` does what it says: the settings by the table, and those of the command."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from config_table import BASE, LR, TABLE, Change
from recorded import Seen, finetune

from ggtune import TrainConfig
from ggtune.cli.finetune import command
from ggtune.cli.old_flags import LOST_FLAGS
from ggtune.config import WITHOUT_EFFECT_ON_ALL
from ggtune.gguf.adapter_file import read_adapter

Settle = Callable[[dict[str, Any]], dict[str, Any]]
BaseRun = Callable[[dict[str, Any]], Seen]
FIELDS = {f.name for f in dataclasses.fields(TrainConfig)}
OPTIONS = {option.name: option for option in command.params if isinstance(option, click.Option)}
# those of the command itself, and the test of each below
OWN = {
    "lora_out": "test_names_of_the_files",
    "checkpoint_out": "test_names_of_the_files",
    "pattern_fn_it": "test_names_of_the_files",
    "fn_latest": "test_names_of_the_files",
    "checkpoint_in": "test_going_on",
    "only_write_lora": "test_only_the_adapter",
    "escape": "test_escapes",
    "grad_acc": "test_accumulated_samples",
    "adam_min_alpha": "test_lowest_rate",
    "separate_with_eos": "test_always_separated",
    "separate_with_bos": "test_always_separated",
}


# what llama.cpp's finetune called the settings that have another name today
OLD_NAMES = {
    "--model-base": "model",
    "--train-data": "data",
    "--adam-iter": "max_steps",
    "--adam-alpha": "lr",
    "--adam-beta1": "beta1",
    "--adam-beta2": "beta2",
    "--adam-decay": "weight_decay",
    "--adam-gclip": "clip",
    "--cos-decay-steps": "decay_steps",
    "--cos-decay-min": "min_lr_ratio",
    "--lora-r": "rank",
    "--lora-alpha": "alpha",
    "--use-checkpointing": "recompute",
    "-c": "ctx",
    "-b": "batch",
    "-s": "seed",
    "-t": "threads",
}


def arguments(values: dict[str, Any], *, leave_out: str = "") -> list[str]:
    """The long flags of all settings, those of today's names."""
    given = []
    config = TrainConfig(**values)
    idle = WITHOUT_EFFECT_ON_ALL if config.loss_on == "all" or leave_out == "loss_on" else ()
    for name, value in config.to_dict().items():
        if name in OPTIONS and name not in idle and name != leave_out and value not in (None, []):
            given += flag_and_value("--" + name.replace("_", "-"), value)
    return given


def flag_and_value(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag] if value else ["--no-" + flag[2:]]
    return [flag, ",".join(value) if isinstance(value, list | tuple) else str(value)]


def test_every_option_has_a_test() -> None:
    lost = {option.name for option in OPTIONS.values() if option.opts[0] in LOST_FLAGS}
    assert FIELDS - {"from_adapter"} | set(OWN) | lost == set(OPTIONS)
    assert set(OWN.values()) <= set(globals())


def test_old_names() -> None:
    assert {flag: option.name for option in OPTIONS.values() for flag in option.opts if flag in OLD_NAMES} == OLD_NAMES


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        pytest.param(name, flag, id=flag)
        for name, option in OPTIONS.items()
        if name in FIELDS and name not in ("model", "data")
        for flag in option.opts
    ],
)
def test_flag_of_a_setting(name: str, flag: str, tmp_path: Path, base_run: BaseRun, settled: Settle) -> None:
    change: Change = TABLE[name][0]
    if change.base.get("from_adapter"):
        pytest.skip("finetune has no --from")
    before = base_run(change.base)
    values = settled({**BASE, **change.base})
    given = [*arguments(values, leave_out=name), *flag_and_value(flag, settled({name: change.value})[name])]
    after = finetune(tmp_path / "run", given)
    assert not after.error
    change.check(before, after)


@pytest.mark.parametrize(("model", "data"), [("--model", "--data"), ("--model-base", "--train-data")])
def test_the_two_files(model: str, data: str, tmp_path: Path, base_run: BaseRun, settled: Settle) -> None:
    files = settled({"model": TABLE["model"][0].value, "data": TABLE["data"][0].value})
    given = [flag for flag in arguments(settled(BASE), leave_out="model") if flag not in ("--data", BASE["data"])]
    after = finetune(tmp_path / "run", [*given, model, files["model"], data, files["data"]])
    assert not after.error
    TABLE["data"][0].check(base_run({}), after)
    assert after.model == files["model"]


def test_names_of_the_files(tmp_path: Path, settled: Settle) -> None:
    names = ["--lora-out", tmp_path / "run" / "lora-IT.gguf", "--checkpoint-out", tmp_path / "run" / "state-IT.gguf"]
    given = arguments(settled({**BASE, "save_every": "2"}))
    seen = finetune(tmp_path / "run", [*map(str, names), "--pattern-fn-it", "IT", "--fn-latest", "NEWEST", *given])
    assert not seen.error
    steps = ("2", "3", "NEWEST")
    assert seen.files - {name for name in seen.files if name.startswith(".")} == {
        *(f"lora-{step}.gguf" for step in steps),
        *(f"state-{step}.gguf" for step in steps),
        "lora-NEWEST.gguf.metrics.jsonl",
    }
    for stem in ("lora", "state"):
        last, newest = ((tmp_path / "run" / f"{stem}-{step}.gguf").read_bytes() for step in ("3", "NEWEST"))
        assert last == newest


@pytest.fixture
def three_steps(tmp_path: Path, settled: Settle) -> Path:
    """The folder of a run with checkpoints of the steps 1 to 3."""
    assert not finetune(tmp_path / "first", arguments(settled({**BASE, "save_every": "1", "keep": 0}))).error
    return tmp_path / "first"


def test_going_on(three_steps: Path, tmp_path: Path, settled: Settle) -> None:
    given = arguments(settled({**BASE, "save_every": "1", "keep": 0}))
    seen = finetune(tmp_path / "second", ["--checkpoint-in", str(three_steps / "checkpoint-1.gguf"), *given])
    assert (seen.n_steps, seen.checkpoints) == (2, [2, 3])
    one, other = (read_adapter(folder / "adapter.gguf") for folder in (three_steps, tmp_path / "second"))
    assert all(np.array_equal(values, other.tensors[name]) for name, values in one.tensors.items())
    # the newest copy of a run under the same name is gone on from without being named
    shutil.copyfile(three_steps / "checkpoint-1.gguf", three_steps / "checkpoint-LATEST.gguf")
    third = tmp_path / "third"
    names = ["--checkpoint-out", str(three_steps / "checkpoint-ITERATION.gguf")]
    assert finetune(third, [*names, *given]).n_steps == 2


def test_only_the_adapter(three_steps: Path, tmp_path: Path) -> None:
    checkpoint = three_steps / "checkpoint-2.gguf"
    seen = finetune(tmp_path / "second", ["--only-write-lora", "--checkpoint-in", str(checkpoint)])
    assert (seen.error, seen.n_steps, seen.files) == ("", 0, {"adapter.gguf"})
    last = read_adapter(three_steps / "adapter.gguf")
    assert seen.adapter is not None
    assert seen.adapter.tensors.keys() == last.tensors.keys()
    assert not any(np.array_equal(values, last.tensors[name]) for name, values in seen.adapter.tensors.items())


def test_escapes(tmp_path: Path) -> None:
    data = tmp_path / "text.txt"
    data.write_text("".join(f"\t\tThis is part {i} of the text.\n" for i in range(3)))
    given = arguments({**BASE, "data": str(data), "loss_on": "all", "holdout": "0", "sample_start": r"\t\t"})
    plain = finetune(tmp_path / "plain", given)
    escaped = finetune(tmp_path / "escaped", ["--escape", *given])
    assert "does not occur" in plain.error
    assert not escaped.error
    assert all(text.startswith("<s>This is part") for text in escaped.texts)


def test_accumulated_samples(tmp_path: Path, base_run: BaseRun, settled: Settle) -> None:
    given = arguments(settled({**BASE, "batch": 2}))
    assert finetune(tmp_path / "run", ["--grad-acc", "2", *given]).same_adapter(base_run({}))


def test_lowest_rate(tmp_path: Path, settled: Settle) -> None:
    # llama.cpp: the shape's floor is --cos-decay-min, and what lies above --adam-min-alpha is scaled by the shape
    given = arguments(settled({**BASE, "schedule": "linear", "decay_steps": 1, "min_lr_ratio": 0.5}))
    seen = finetune(tmp_path / "run", ["--adam-min-alpha", str(LR / 5), *given])
    lowest = 0.2 + 0.5 * (1 - 0.2)
    assert seen.rates == pytest.approx([LR, LR * lowest, LR * lowest])


def test_always_separated(tmp_path: Path, base_run: BaseRun, settled: Settle) -> None:
    seen = finetune(tmp_path / "run", ["--separate-with-eos", "--separate-with-bos", *arguments(settled(BASE))])
    assert seen.same_adapter(base_run({}))
    assert all(text.startswith("<s>") and text.endswith("</s>") for text in seen.texts)


def test_lost_flags(tmp_path: Path, base_run: BaseRun, settled: Settle) -> None:
    """They change nothing, and each says so."""
    given = [part for name, (takes_value, _) in LOST_FLAGS.items() for part in ([name, "1"] if takes_value else [name])]
    seen = finetune(tmp_path / "run", [*given, *arguments(settled(BASE))])
    assert seen.same_adapter(base_run({}))
    assert all(f"{name} has no effect any more: {why}." in seen.output for name, (_, why) in LOST_FLAGS.items())


@pytest.mark.parametrize(
    ("flags", "n_layers"),
    [
        (["--use-checkpointing"], True),
        (["--no-checkpointing"], False),
        (["--no-use-checkpointing"], False),
        (["--recompute"], True),
        (["--no-recompute"], False),
    ],
)
def test_switches_of_recomputation(flags: list[str], n_layers: bool, tmp_path: Path, settled: Settle) -> None:
    opposite = settled({**BASE, "max_steps": 1, "recompute": "none" if n_layers else "layers"})
    seen = finetune(tmp_path / "run", [*arguments(opposite), *flags])
    assert not seen.error
    assert (seen.recompute_layers > 0) == n_layers


def test_no_flags(tmp_path: Path, settled: Settle) -> None:
    """A switch that is off, where its default is on or was given before."""
    given = arguments(settled({**BASE, "rslora": True}))
    seen = finetune(tmp_path / "run", [*given, "--no-rslora"])
    assert seen.adapter is not None
    assert seen.adapter.alpha == 4
