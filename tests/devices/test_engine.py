"""Layers on devices against PyTorch: gradients, AdamW, copies between devices, loss scales, memory.

On simulated devices in main memory, and on a real or software one that ``GGTUNE_TEST_DEVICE`` names ("Vulkan0"), with
all families of models. A process opens a real device one way alone: ``GGTUNE_TEST_PRECISION`` says which, f32 or auto.
"""

import gc
import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggtune import _core
from ggtune._core import Adapter, Model, Trainer
from ggtune.errors import DeviceMemoryError, GgtuneError

FOLDER = Path(__file__).parents[1] / "golden"
NAMED = os.environ.get("GGTUNE_TEST_DEVICE", "")
SIMULATED = "256M,256M,256M:half,256M:lacks=ROPE,1M"
EXACT, SECOND, HALF, WITHOUT_ROPE, TINY = "SIM0", "SIM1", "SIM2", "SIM3", "SIM4"
ALL_FAMILIES = sorted(path.stem for folder in (FOLDER, FOLDER / "sparse") for path in folder.glob("*.npz"))
SOME_FAMILIES = ["falcon", "gemma2", "gemma3", "gpt2", "llama", "phi3", "deepseek3", "gemma4-e2b", "gpt-oss", "lfm2"]
SOME_FAMILIES += ["mixtral", "qwen35"]
FAMILIES = ALL_FAMILIES if NAMED else SOME_FAMILIES
PRECISIONS = [os.environ.get("GGTUNE_TEST_PRECISION", "f32")] if NAMED else ["f32", "auto"]
LIMITS = {"f32": 5e-3 if NAMED else 1e-4, "auto": 3e-2}  # of gradients, relative in norm

Batch = tuple[np.ndarray, ...]
Gradients = dict[str, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def simulated_devices() -> Iterator[None]:
    """They are read when the devices are first asked for, and stay for the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GGTUNE_SIMULATED_DEVICES", SIMULATED)
        assert {device.name for device in _core.devices()} >= {EXACT, SECOND, HALF, WITHOUT_ROPE, TINY}
        yield


@dataclass
class Family:
    """One model with PyTorch's numbers."""

    name: str
    numbers: dict[str, np.ndarray]
    lora: dict[str, np.ndarray]
    n_layer: int

    @property
    def batch(self) -> Batch:
        return tuple(self.numbers[key] for key in ("tokens", "positions", "sequences", "targets", "weights"))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.batch[0]), int(np.count_nonzero(self.batch[4])), int(self.batch[2].max()) + 1

    @property
    def gradients(self) -> Gradients:
        return {key: value for key, value in self.numbers.items() if key.endswith((".lora_a", ".lora_b"))}

    def trainer(self, precision: str = "f32", *, recompute_layers: int = 0, **places: Any) -> Trainer:
        kinds = sorted({re.sub(r"blk\.\d+\.(.+)\.weight\.lora_[ab]", r"\1", tensor) for tensor in self.lora})

        def make(**more: Any) -> Trainer:
            model = Model(str(path_of(self.name, ".gguf")), exact=precision == "f32", **places, **more)
            rank, alpha = int(self.numbers["rank"]), float(self.numbers["alpha"])
            adapter = Adapter(model, rank=rank, alpha=alpha, targets=kinds)
            for tensor, values in self.lora.items():
                adapter.set(tensor, values)
            context = int(self.numbers["positions"].max()) + 1
            return Trainer(adapter, context=context, threads=2, precision=precision)

        trainer = make()
        if trainer.unsupported:
            trainer = make(cpu_layers=sorted({layer for layer, _, _ in trainer.unsupported}))
        trainer.recompute_layers = recompute_layers
        return trainer


def path_of(name: str, end: str) -> Path:
    path = FOLDER / f"{name}{end}"
    return path if path.exists() else FOLDER / "sparse" / f"{name}{end}"


def load(name: str) -> Family:
    with np.load(path_of(name, ".npz")) as file:
        numbers = dict(file)
    lora = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path_of(name, "-lora.gguf")).tensors}
    return Family(name, numbers, lora, Model(str(path_of(name, ".gguf")), header_only=True).n_layer)


def device(precision: str) -> str:
    return NAMED or (EXACT if precision == "f32" else HALF)


def errors(actual: Gradients, expected: Gradients) -> dict[str, float]:
    assert actual.keys() == expected.keys()
    return {
        name: float(np.linalg.norm(actual[name] - expected[name]) / np.linalg.norm(expected[name])) for name in expected
    }


def worst(trainer: Trainer, family: Family) -> float:
    found = errors(trainer.gradients(), family.gradients)
    return max(found.values()) if all(np.isfinite(value) for value in found.values()) else float("inf")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return load(request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("share", ["all", "half", "head"])
def test_gradients_equal_pytorch(family: Family, share: str, precision: str) -> None:
    if share == "head" and not NAMED and family.name not in ("llama", "gemma3"):
        pytest.skip("as with half of the layers")
    n = {"all": family.n_layer + 1, "half": max(1, (family.n_layer + 1) // 2), "head": 1}[share]
    trainer = family.trainer(precision, devices=[device(precision)], device_layers=[n])
    loss = trainer.accumulate(*family.batch).loss_sum
    assert loss == pytest.approx(float(family.numbers["loss_sum"]), rel=1e-4 if precision == "f32" else 2e-3)
    assert worst(trainer, family) < LIMITS[precision]


def layers_sent_back(family: Family, n: int) -> set[int]:
    kinds = sorted({re.sub(r"blk\.\d+\.(.+)\.weight\.lora_[ab]", r"\1", tensor) for tensor in family.lora})
    model = Model(
        str(path_of(family.name, ".gguf")), devices=[device("f32")], device_layers=[n], exact=True, header_only=True
    )
    trainer = Trainer(Adapter(model, rank=2, alpha=2.0, targets=kinds), context=64, threads=1, precision="f32")
    return {layer for layer, _, _ in trainer.unsupported}


def test_crossings_between_devices_are_few(family: Family) -> None:
    """Twice for each boundary, forward and back; and once for the embeddings, which are looked up in main memory."""
    if PRECISIONS == ["auto"]:
        pytest.skip("the device has been opened otherwise")
    for n in sorted({1, max(1, (family.n_layer + 1) // 2), family.n_layer + 1}):
        back = layers_sent_back(family, n)
        on_cpu = [layer <= family.n_layer - n or layer in back for layer in range(family.n_layer + 1)]
        n_boundaries = sum(one != other for one, other in itertools.pairwise(on_cpu))
        shared = 2 * (family.name == "gemma4-e2b")  # its later layers read keys and values of an earlier one
        trainer = family.trainer(devices=[device("f32")], device_layers=[n])
        assert trainer.splits(*family.shape) <= 2 * n_boundaries + 1 + shared


def test_no_node_is_on_the_cpu_that_the_device_could_do(family: Family) -> None:
    if PRECISIONS == ["auto"]:
        pytest.skip("the device has been opened otherwise")
    if layers_sent_back(family, family.n_layer + 1):
        pytest.skip("some of its layers are the CPU's")
    trainer = family.trainer(devices=[device("f32")], device_layers=[family.n_layer + 1])
    assert set(trainer.nodes(*family.shape)["CPU"]) == {"GET_ROWS"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ALL_FAMILIES if NAMED else ["llama", "gemma2"])
def test_adamw_follows_pytorch(name: str, precision: str) -> None:
    family = load(name)
    numbers = family.numbers
    trainer = family.trainer(precision, devices=[device(precision)], device_layers=[family.n_layer + 1])
    losses = []
    for _ in range(len(numbers["losses"]) - 1):
        result = trainer.accumulate(*family.batch)
        losses.append(result.loss_sum / result.weight_sum)
        names = ("beta1", "beta2", "epsilon", "weight_decay")
        trainer.step(float(numbers["lr"]), **{key: float(numbers[key]) for key in names})
    result = trainer.evaluate(*family.batch)
    losses.append(result.loss_sum / result.weight_sum)
    assert trainer.n_steps == 20
    np.testing.assert_allclose(losses, numbers["losses"], rtol=1e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_recomputation_changes_nothing(precision: str) -> None:
    family = load("llama")
    places = {"devices": [device(precision)], "device_layers": [family.n_layer]}
    found = []
    for n_again in (0, family.n_layer):
        trainer = family.trainer(precision, recompute_layers=n_again, **places)
        trainer.accumulate(*family.batch)
        found.append(trainer.gradients())
    assert max(errors(found[1], found[0]).values()) < (1e-6 if precision == "f32" else 1e-2)


def test_two_devices_and_the_cpu() -> None:
    family = load("gemma3")  # six layers
    trainer = family.trainer(devices=[EXACT, SECOND], device_layers=[2, 3])
    assert trainer.adapter is not None
    nodes = trainer.nodes(*family.shape)
    assert min(sum(nodes[name].values()) for name in ("CPU", EXACT, SECOND)) > 100
    assert trainer.splits(*family.shape) <= 4
    trainer.accumulate(*family.batch)
    assert worst(trainer, family) < 1e-4


def test_layers_between_others_may_be_the_cpus() -> None:
    family = load("gemma3")
    trainer = family.trainer(devices=[EXACT], device_layers=[7], cpu_layers=[2, 5])
    assert trainer.splits(*family.shape) <= 2 * 4 + 1
    trainer.accumulate(*family.batch)
    assert worst(trainer, family) < 1e-4


@pytest.mark.parametrize("name", ["mixtral", "deepseek3", "gpt-oss"])
def test_experts_in_main_memory(name: str) -> None:
    family = load(name)
    places = {"devices": [EXACT], "device_layers": [family.n_layer + 1]}
    model = Model(str(path_of(name, ".gguf")), **places, exact=True)
    less = Model(str(path_of(name, ".gguf")), **places, cpu_experts=family.n_layer, exact=True)
    assert less.device_bytes[EXACT] < model.device_bytes[EXACT]
    trainer = family.trainer(**places, cpu_experts=family.n_layer)
    nodes = trainer.nodes(*family.shape)
    assert not any(op.startswith("MUL_MAT_ID") for op in nodes[EXACT])
    assert {"expert_product", "expert_product_dx"} & set(nodes["CPU"])
    trainer.accumulate(*family.batch)
    assert worst(trainer, family) < 1e-4


def test_what_a_device_lacks_is_named_and_goes_to_the_cpu() -> None:
    family = load("llama")
    trainer = family.trainer(devices=[WITHOUT_ROPE], device_layers=[family.n_layer + 1])
    assert set(trainer.nodes(*family.shape)["CPU"]) > {"ROPE"}
    trainer.accumulate(*family.batch)
    assert worst(trainer, family) < 1e-4
    model = Model(str(path_of("llama", ".gguf")), devices=[WITHOUT_ROPE], device_layers=[2], exact=True)
    alone = Trainer(Adapter(model, rank=2, alpha=2.0, targets=["attn_q"]), context=64, threads=1, precision="f32")
    assert [(layer, op) for layer, op, _ in alone.unsupported] == [(1, "ROPE")]
    with pytest.raises(GgtuneError, match="the device of layer 1 can't compute ROPE"):
        alone.accumulate(*family.batch)


def test_tiny_weights_lose_nothing_to_half_precision() -> None:
    """Gradients of a millionth of the usual: below what half precision holds, but for the scale of the loss."""
    family = load("llama")
    places = {"devices": [HALF], "device_layers": [family.n_layer + 1]}
    plain, tiny = (family.trainer("auto", **places) for _ in range(2))
    plain.accumulate(*family.batch)
    *others, weights = family.batch
    tiny.accumulate(*others, (weights * 2.0**-20).astype(np.float32))
    expected = {name: values * 2.0**-20 for name, values in plain.gradients().items()}
    assert max(errors(tiny.gradients(), expected).values()) < 3e-2


def test_small_gradients_need_the_scale() -> None:
    """The other way round: without it they are lost, so the test above proves something."""
    family = load("llama")
    trainer = family.trainer("auto", devices=[HALF], device_layers=[family.n_layer + 1])
    trainer.loss_scale = 2.0**-30
    trainer.accumulate(*family.batch)
    assert worst(trainer, family) > 0.5


def test_a_step_that_overflows_is_computed_again() -> None:
    family = load("llama")
    places = {"devices": [HALF], "device_layers": [family.n_layer + 1]}
    usual, overflowing = (family.trainer("auto", **places) for _ in range(2))
    usual.loss_scale, overflowing.loss_scale = 2.0**8, 2.0**40
    norms = []
    for trainer in (usual, overflowing):
        for _ in range(2):
            trainer.accumulate(*family.batch)
        n_micro_batches = trainer.n_micro_batches
        norms.append(trainer.step(1e-3))
        assert trainer.n_micro_batches == n_micro_batches == 2
    assert overflowing.loss_scale < 2.0**20
    assert norms[1] == pytest.approx(norms[0], rel=3e-2)
    for name in usual.adapter.tensor_names():
        one, other = usual.adapter.get(name), overflowing.adapter.get(name)
        assert np.abs(one - other).max() <= 2.1e-3  # a step of the rate in either direction


def test_loss_scales_are_for_devices_that_round() -> None:
    family = load("llama")
    exact = family.trainer(devices=[EXACT], device_layers=[1])
    exact.loss_scale = 1024.0
    assert exact.loss_scale == 1.0
    rounding = family.trainer("auto", devices=[HALF], device_layers=[1])
    assert rounding.loss_scale == 0.0
    rounding.accumulate(*family.batch)
    assert rounding.loss_scale > 1.0
    for wrong in (3.0, -2.0, float("nan"), float("inf")):
        with pytest.raises(GgtuneError, match="power of two"):
            rounding.loss_scale = wrong


@pytest.mark.parametrize("name", ["gemma3", "mixtral", "deepseek3"])
def test_memory_is_as_predicted(name: str) -> None:
    family = load(name)
    gc.collect()  # trainers of tests before
    before = free_bytes(SECOND)
    places = {"devices": [SECOND], "device_layers": [max(1, family.n_layer - 1)]}
    trainer = family.trainer(**places)
    trainer.accumulate(*family.batch)
    used = before - free_bytes(SECOND)
    predicted = sum(trainer.device_memory(*family.shape)[SECOND].values())
    assert predicted == pytest.approx(used, rel=0.05)


def free_bytes(name: str) -> int:
    return next(found.free_bytes for found in _core.devices() if found.name == name)


def test_too_little_memory_is_an_error_that_names_the_device() -> None:
    family = load("gemma3")
    before = free_bytes(TINY)
    with pytest.raises(DeviceMemoryError, match=f"{TINY}.*gpu-layers"):
        family.trainer(devices=[TINY], device_layers=[7]).reserve(2048, 2048, 1)
    assert free_bytes(TINY) == before


def test_parameters_are_set_and_got_through_the_device() -> None:
    family = load("llama")
    trainer = family.trainer(devices=[EXACT], device_layers=[2])
    name = "blk.1.ffn_down.weight.lora_b"
    values = trainer.adapter.get(name) + 1.0
    trainer.adapter.set(name, values)
    assert np.array_equal(trainer.adapter.get(name), values)
    before = family.trainer(devices=[EXACT], device_layers=[2]).evaluate(*family.batch).loss_sum
    assert trainer.evaluate(*family.batch).loss_sum != before


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"devices": ["SIM99"], "device_layers": [1]}, "there is no device SIM99; there are: .*SIM0"),
        ({"devices": [EXACT], "device_layers": [99]}, "99 can't lie on devices"),
        ({"devices": [EXACT], "device_layers": [0]}, "at least 1 layer"),
        ({"devices": [EXACT], "device_layers": []}, "1 devices and numbers of layers for 0"),
        ({"devices": [EXACT], "device_layers": [1], "cpu_layers": [77]}, "layers 0 to 1"),
    ],
)
def test_wrong_places(places: dict[str, Any], message: str) -> None:
    with pytest.raises(GgtuneError, match=message):
        Model(str(path_of("llama", ".gguf")), **places)


def test_precision_goes_with_how_the_model_was_opened() -> None:
    model = Model(str(path_of("llama", ".gguf")), devices=[EXACT], device_layers=[1], exact=False)
    adapter = Adapter(model, rank=2, alpha=2.0, targets=["attn_q"])
    with pytest.raises(GgtuneError, match="not been opened as exact"):
        Trainer(adapter, context=64, threads=1, precision="f32")
    with pytest.raises(GgtuneError, match="precision auto or f32"):
        Trainer(adapter, context=64, threads=1, precision=r"llama.cpp")
