"""Runs with layers on devices: where they lie, what is refused, going on elsewhere, a device that is lost."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from architectures import files
from ggtune import _core
from ggtune.cli import cli
from ggtune.config import TrainConfig
from ggtune.demo import DATA, MODEL
from ggtune.errors import DeviceMemoryError, GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.publish.hub import uploads
from ggtune.publish.run_folder import read_run
from ggtune.run.checkpoint import load_checkpoint
from ggtune.run.metrics import read_metrics
from ggtune.run.outputs import Outputs
from ggtune.run.progress import Progress
from ggtune.run.status import read_status
from ggtune.train import placement
from ggtune.train.forecast import forecast
from ggtune.train.placing import PlacedRun, placed_run
from ggtune.train.session import fine_tune, prepare

N_ALL = 9  # layers of the demo's model, the output head among them


def config(on: str, **changes: Any) -> TrainConfig:
    values = {
        "model": str(MODEL),
        "data": str(DATA),
        "device": tuple(filter(None, on.split(","))),
        "ctx": 64,
        "batch": 4,
        "micro_batch_tokens": 64,
        "rank": 2,
        "targets": ("attn_q", "ffn_down"),
        "lr": 1e-2,
        "epochs": 0.0,
        "max_steps": 4,
        "decay_steps": 100,
        "save_every": "2",
        "keep": 0,
        "holdout": "every:16",
        "precision": "f32",
        "threads": 1,
    }
    return TrainConfig(**{**values, **changes})


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(out / "metrics.jsonl")]


def planned(on: str, **changes: Any) -> PlacedRun:
    return placed_run(config(on, **changes), header_only=True)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cpu")
    fine_tune(config("none"), out, quiet=True)
    return out


@pytest.mark.parametrize(("layers", "n"), [("auto", N_ALL), ("all", N_ALL), ("4", 4), ("1", 1)])
def test_the_loss_is_the_cpus(layers: str, n: int, device: str, on_cpu: Path, tmp_path: Path) -> None:
    session = prepare(config(device, gpu_layers=layers), Outputs.folder(tmp_path))
    assert session.built.model.layer_devices == ["CPU"] * (N_ALL - n) + [device] * n
    (line,) = [line for line in session.report if line.startswith(f"Layers on {device}")]
    assert line.count("the output head") == 1
    session.loop(Progress(quiet=True)).run()
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), rel=2e-3)
    assert load_checkpoint(tmp_path / "checkpoint-4.gguf").state.places == [
        {"step": 0, "layers": {device: n, "CPU": N_ALL - n}}
    ]
    devices = read_status(tmp_path).devices
    assert devices["CPU"] == {"layers": N_ALL - n}
    assert devices[device]["layers"] == n
    assert devices[device]["memory_bytes"] > 0


def test_no_device_is_taken_by_itself_that_is_simulated(tmp_path: Path) -> None:
    if any(info.kind != "simulated" for info in _core.devices()):
        pytest.skip("a real device is there")
    session = prepare(config(""), Outputs.folder(tmp_path))
    assert set(session.built.model.layer_devices) == {"CPU"}
    assert not any("SIM" in line for line in session.report)
    wanted = placement.wanted_devices(config("", gpu_layers="3"))
    assert wanted is not None
    assert [info.name for info in wanted.devices] == [info.name for info in _core.devices()]


def test_none_and_zero_are_the_cpu() -> None:
    for changes in ({"device": ("none",)}, {"gpu_layers": "0"}):
        assert not planned("SIM0", **changes).devices


def test_several_devices() -> None:
    def layers(**changes: Any) -> dict[str, int]:
        return planned("SIM0,SIM1", gpu_layers="all", **changes).layer_numbers()

    assert layers(split="2,1") == {"SIM0": 6, "SIM1": 3, "CPU": 0}
    assert layers(split="1,8") == {"SIM0": 1, "SIM1": 8, "CPU": 0}
    main = planned("SIM0,SIM1", gpu_layers="all", split="2,1", main_device="SIM0")
    assert main.layer_numbers() == {"SIM1": 6, "SIM0": 3, "CPU": 0}
    assert main.built.model.layer_devices[-1] == "SIM0"
    by_memory = planned("SIM0,SIM1", gpu_layers="all")
    sizes = by_memory.built.model.device_bytes
    assert abs(sizes["SIM0"] - sizes["SIM1"]) <= max(by_memory.built.model.layer_bytes)
    assert planned("SIM1,SIM0", gpu_layers="3", split="1,2").layer_numbers() == {"SIM1": 1, "SIM0": 2, "CPU": 6}


def test_a_run_over_two_devices_learns_the_same(on_cpu: Path, tmp_path: Path) -> None:
    fine_tune(config("SIM1,SIM0", gpu_layers="6", split="1,1"), tmp_path, quiet=True)
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), rel=2e-3)


def test_experts_stay_in_main_memory(tmp_path: Path) -> None:
    files.write_model(tmp_path, "qwen3moe")
    rows = [f"{'abcdefgh'[i]}b,{'hgfedcba'[i]}a" for i in range(8)]
    (tmp_path / "data.csv").write_text("\n".join(["question,answer", *rows]) + "\n")

    def weights(n: int) -> int:
        found = planned(
            "SIM0",
            model=str(tmp_path / "qwen3moe.gguf"),
            data=str(tmp_path / "data.csv"),
            template="plain",
            ctx=32,
            targets=("attention",),
            gpu_layers="all",
            cpu_experts=n,
        )
        return found.devices["SIM0"].needed["weights"]

    assert weights(0) > weights(1) > weights(2)
    with pytest.raises(GgtuneError, match="--cpu-experts 99: the model has 3 layers"):
        weights(99)


def test_too_small_a_device_gets_fewer_layers(device: str) -> None:
    larger = {"batch": 16, "micro_batch_tokens": 512, "targets": ("all",)}
    whole = planned(device, gpu_layers="all", recompute="none", **larger).devices[device]
    usable = f"{whole.needed_bytes * 0.8 / (1 << 20):.4f}M"
    part = planned(device, recompute="none", device_memory=usable, **larger).devices[device]
    assert 0 < part.layers < N_ALL
    assert part.needed_bytes <= part.usable_bytes < whole.needed_bytes
    with pytest.raises(GgtuneError, match="--gpu-layers all needs") as error:
        planned(device, gpu_layers="all", recompute="none", device_memory=usable, **larger)
    assert f"so many fit: --gpu-layers {part.layers};" in str(error.value)
    assert "or --recompute" in str(error.value)
    again = planned(device, gpu_layers="all", device_memory=usable, **larger)
    assert again.built.engine.recompute_layers > 0
    assert again.devices[device].needed_bytes <= again.devices[device].usable_bytes


def test_where_nothing_fits_the_cpu_trains(on_cpu: Path, tmp_path: Path) -> None:
    session = prepare(config("SIM4"), Outputs.folder(tmp_path))
    assert sum("No layer fits on SIM4 (921.6 KiB usable)" in line for line in session.report) == 1
    session.loop(Progress(quiet=True)).run()
    assert losses(tmp_path) == losses(on_cpu)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(GgtuneError, match=r"no layer fits: give --device none.*--force starts all the same"):
        fine_tune(config("SIM4", gpu_layers="2"), out, quiet=True)
    with pytest.raises(DeviceMemoryError, match=r"SIM4.* Give a smaller --gpu-layers"):
        fine_tune(config("SIM4", gpu_layers="2", force=True), out, quiet=True)
    assert not out.exists()


def test_a_device_that_has_less_than_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fewer and fewer layers are tried, which is said, and data are read once."""
    monkeypatch.setattr(placement, "excess_bytes", lambda *_: -1)
    session = prepare(config("SIM4"), Outputs.folder(tmp_path))
    assert set(session.built.model.layer_devices) == {"CPU"}
    assert sum("layers are tried instead of" in line for line in session.report) > 3
    assert session.loop(Progress(quiet=True)).run().steps == 4


def test_memory_is_there_before_the_first_step(device: str, tmp_path: Path) -> None:
    session = prepare(config(device), Outputs.folder(tmp_path))
    needed = session.placed.devices[device].needed
    assert session.built.engine.allocated()[device] == pytest.approx(needed["compute"], rel=0.05)


def test_an_operation_that_a_device_lacks_is_said_once(on_cpu: Path, tmp_path: Path) -> None:
    session = prepare(config("SIM3"), Outputs.folder(tmp_path))
    told = [line for line in session.report if "can't do" in line]
    assert told == ["Layers 0, 1, 2, 3, 4, 5, 6, 7 stay on the CPU: SIM3 can't do ROPE"]
    assert session.built.model.layer_devices == ["CPU"] * (N_ALL - 1) + ["SIM3"]
    session.loop(Progress(quiet=True)).run()
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), rel=2e-3)


@pytest.mark.parametrize(
    ("device", "changes", "message"),
    [
        (
            "SIM0,CUDA7",
            {},
            r"there is no CUDA7; there are: .*SIM0, SIM1.* With --device none all is computed by the CPU",
        ),
        ("SIM0,SIM0", {}, "names a device twice"),
        ("SIM0,SIM1", {"split": "1,2,3"}, "has 3 parts, and the devices are 2: SIM0, SIM1"),
        ("SIM0", {"main_device": "SIM1"}, "--main-device SIM1 is none of the devices that are used: SIM0"),
        ("SIM0", {"gpu_layers": "10"}, "the model has 8 layers, 9 with the output head; give all"),
        ("SIM0", {"gpu_layers": "some"}, "--gpu-layers is wrong: it is auto, all or a number of layers"),
        ("SIM0", {"device_memory": "much"}, "--device-memory is wrong: it is a size such as 6G"),
        ("SIM0", {"split": "0,1"}, "--split must be numbers above 0"),
    ],
)
def test_wrong_settings(device: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        planned(device, **changes)


def test_a_build_without_devices() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key != "GGTUNE_SIMULATED_DEVICES"}
        command = [sys.executable, "-m", "ggtune", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    listed = run("devices")
    if "finds no device" not in listed.stdout:
        pytest.skip("a real device is there")
    assert "docs/devices.md says how to build ggtune for one" in listed.stdout
    assert json.loads(run("devices", "--json").stdout) == []
    for more in (["--gpu-layers", "all"], ["--device", "Vulkan0"]):
        refused = run("plan", "--model", str(MODEL), "--data", str(DATA), *more)
        assert refused.returncode == 1
        assert "docs/devices.md" in refused.stderr
        assert "--device none all is computed by the CPU" in refused.stderr


def go_on(out: Path, checkpoint: int, **changes: Any) -> tuple[str, ...]:
    found = load_checkpoint(out / f"checkpoint-{checkpoint}.gguf")
    session = prepare(found.config.continued(changes), Outputs.folder(out), checkpoint=found)
    session.loop(Progress(quiet=True)).run()
    return session.report


def test_a_run_goes_on_elsewhere_and_back(device: str, on_cpu: Path, tmp_path: Path) -> None:
    fine_tune(config("none", max_steps=2), tmp_path, quiet=True)
    first = load_checkpoint(tmp_path / "checkpoint-2.gguf")
    assert first.state.places == []
    report = go_on(tmp_path, 2, device=(device,), gpu_layers="5", max_steps=3)
    assert any(line == f"From step 2 on: 5 layers on {device}, 4 on the CPU; before: all on the CPU" for line in report)
    report = go_on(tmp_path, 3, device=("none",), max_steps=4)
    assert any(line == f"From step 3 on: all on the CPU; before: 5 layers on {device}, 4 on the CPU" for line in report)
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), rel=2e-3)
    assert load_checkpoint(tmp_path / "checkpoint-4.gguf").state.places == [
        {"step": 0, "layers": {}},
        {"step": 2, "layers": {device: 5, "CPU": 4}},
        {"step": 3, "layers": {}},
    ]
    one, two = (read_adapter(path / "adapter.gguf").tensors for path in (on_cpu, tmp_path))
    difference = np.sqrt(sum(float(np.sum((one[name] - two[name]) ** 2)) for name in one))
    assert difference < 1e-2 * np.sqrt(sum(float(np.sum(one[name] ** 2)) for name in one))


def test_the_scale_of_the_loss_is_gone_on_with(tmp_path: Path) -> None:
    """It is a device's that rounds to half precision; a run that comes from the CPU begins with its own."""
    fine_tune(config("SIM2", precision="auto", max_steps=2), tmp_path, quiet=True)
    first = load_checkpoint(tmp_path / "checkpoint-2.gguf").state.loss_scale
    assert first > 1
    assert np.log2(first).is_integer()
    found = load_checkpoint(tmp_path / "checkpoint-2.gguf")
    session = prepare(found.config.continued({"max_steps": 3}), Outputs.folder(tmp_path), checkpoint=found)
    assert session.built.engine.loss_scale == first
    go_on(tmp_path, 2, device=("none",), max_steps=3)
    third = load_checkpoint(tmp_path / "checkpoint-3.gguf")
    assert third.state.loss_scale == 1.0
    back = third.config.continued({"device": ("SIM2",), "max_steps": 4})
    session = prepare(back, Outputs.folder(tmp_path), checkpoint=third)
    assert session.built.engine.loss_scale == 0.0  # chosen by the first micro-batch


def test_a_device_that_is_gone_is_said(tmp_path: Path) -> None:
    fine_tune(config("SIM0", gpu_layers="2", max_steps=2), tmp_path, quiet=True)
    found = load_checkpoint(tmp_path / "checkpoint-2.gguf")
    with pytest.raises(GgtuneError, match=r"there is no CUDA3; .*With --device none"):
        prepare(found.config.continued({"device": ("CUDA3",)}), Outputs.folder(tmp_path), checkpoint=found)


def run_ggtune(devices: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "GGTUNE_SIMULATED_DEVICES": devices}
    command = [sys.executable, "-m", "ggtune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_lost_device_leaves_a_checkpoint(on_cpu: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--ctx", 64, "-b", 4, "--micro-batch-tokens", 64, "--rank", 2, "--targets", "attn_q,ffn_down"]
    options += ["--lr", 1e-2, "--epochs", 0, "--max-steps", 4, "--decay-steps", 100, "--holdout", "every:16"]
    options += ["--precision", "f32", "-t", 1]
    lost = run_ggtune(
        "256M:lost=250", "train", "--model", MODEL, "--data", DATA, "--out", out, "--device", "SIM0", *options
    )
    assert lost.returncode == 1
    step = re.search(
        r"step (\d) is saved: .*checkpoint-\1.gguf. Go on with `ggtune resume .*--device none", lost.stderr
    )
    assert step is not None, lost.stderr
    assert 0 < int(step[1]) < 4
    assert "halved" not in lost.stdout
    assert read_status(out).state == "failed"
    gone_on = run_ggtune("256M", "resume", out, "--device", "none")
    assert gone_on.returncode == 0, gone_on.stderr
    assert losses(out) == pytest.approx(losses(on_cpu), rel=2e-3)


def test_a_device_that_is_lost_at_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    lost = run_ggtune("256M:lost=0", "train", "--model", MODEL, "--data", DATA, "--out", out, "--device", "SIM0")
    assert lost.returncode == 1
    assert "no step was whole" in lost.stderr
    assert not list(out.glob("checkpoint*"))


def ggtune(*arguments: object) -> str:
    if "GGTUNE_TEST_DEVICE" in os.environ:  # real devices are open as exact, which is for good in this process
        done = run_ggtune(os.environ["GGTUNE_SIMULATED_DEVICES"], *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_knows_devices(device: str) -> None:
    found = forecast(config(device, gpu_layers="3"))
    assert found.seconds_per_step is None
    assert {name: use.layers for name, use in found.devices.items()} == {device: 3, "CPU": 6}
    text = ggtune("plan", "--model", MODEL, "--data", DATA, "--ctx", 64, "--device", device, "--gpu-layers", 3)
    assert re.search(rf"Layers on {device} .*: layers 6 to 7 and the output head; .* expected of .*: it fits", text)
    assert "Layers on CPU: layers 0 to 5" in text
    assert "Main memory: " in text
    assert "their time was not tried on devices" in text
    whole = forecast(config(device, gpu_layers="all"))
    assert whole.devices[device].needed_bytes > found.devices[device].needed_bytes
    assert whole.memory_bytes["weights"] < found.memory_bytes["weights"]


def test_status(device: str, tmp_path: Path) -> None:
    fine_tune(config(device, gpu_layers="3", max_steps=1), tmp_path, quiet=True)
    assert re.search(rf"Layers 3 on {device} \(.* expected\), 6 on CPU", ggtune("status", tmp_path))
    told = json.loads(ggtune("status", tmp_path, "--json"))
    assert told["state"] == "finished"
    assert told["step"] == 1
    assert told["devices"][device]["layers"] == 3
    card = next(file.source for file in uploads(read_run(tmp_path), "me/x") if file.name == "README.md")
    assert isinstance(card, bytes)
    assert re.search(rf"\| layers \| 3 on {device} \(.* expected\), 6 on CPU \|", card.decode())
    assert "gpu_layers" not in card.decode()


def test_devices_are_listed() -> None:
    text = ggtune("devices", MODEL)
    assert "SIM0: simulated in main memory (Simulated, simulated)" in text
    assert "products of floats in half precision (exact with --precision f32)" in text
    assert text.count(f"{N_ALL} of {N_ALL} layers fit with the default settings") >= 3
    assert "No layer fits on SIM4" in text
    assert "stay on the CPU: SIM3 can't do ROPE" in text
    told = {device["name"]: device for device in json.loads(ggtune("devices", "--json", MODEL))}
    assert told["SIM0"]["fit"]["layers"] == N_ALL
    assert told["SIM3"]["fit"]["layers"] == 1
    assert told["SIM4"]["fit"]["layers"] == 0
    assert told["SIM2"]["half_products"]
    assert told["SIM0"]["total_bytes"] == 256 << 20


def test_answers_are_the_same_on_a_device(device: str) -> None:
    question = ("ask", "--model", MODEL, "-n", 8, "What is a tree?")
    expected = ggtune(*question, "--device", "none").split()
    n_same = 4 if "GGTUNE_TEST_DEVICE" in os.environ else None  # a real one rounds otherwise
    for layers in ("auto", "all", "3", "99"):
        assert ggtune(*question, "--device", device, "-ngl", layers).split()[:n_same] == expected[:n_same]


@pytest.mark.skipif("GGTUNE_TEST_DEVICE" not in os.environ, reason="takes minutes on a simulated device")
def test_the_demo_learns(device: str, tmp_path: Path) -> None:
    text = ggtune("demo", "--out", tmp_path, "--gpu-layers", "all", "--device", device)
    assert re.search(rf"Layers on {device} .*layers 0 to 7 and the output head", text)
    assert "8 of 8 answers are right word for word" in text
    assert losses(tmp_path)[-1] < 0.1
