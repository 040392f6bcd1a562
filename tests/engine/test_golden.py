"""Engine against PyTorch: tiny models of many architectures, made by scripts/make_golden.py (which says with what)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ggtune._core import Adapter, BatchResult, Model, Trainer, decode_log_probs, merge

FOLDER = Path(__file__).parents[1] / "golden"
DENSE = sorted(path.stem for path in FOLDER.glob("*.npz"))
# mixtures of experts and hybrids (scripts/golden/families)
SPARSE = sorted(path.stem for path in (FOLDER / "sparse").glob("*.npz"))
NAMES = DENSE + SPARSE
REQUIRED = {"llama", "qwen2", "qwen3", "gemma", "gemma2", "phi3"}
REQUIRED |= {"deepseek3", "falcon-h1", "gemma4", "gpt-oss", "granitehybrid", "jamba", "lfm2", "mamba2", "mixtral"}
REQUIRED |= {"nemotron-h", "qwen35", "qwen35moe", "qwen3moe", "qwen3next"}
BATCH_KEYS = ("tokens", "positions", "sequences", "targets", "weights")

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]


@dataclass
class Golden:
    """One model with PyTorch's numbers, and trainers that start from its adapter."""

    numbers: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]
    batch: Batch
    new_trainer: Callable[..., Trainer]

    def samples(self) -> list[Batch]:
        """Split the batch into micro-batches of one sequence each."""
        tokens, positions, sequences, targets, weights = self.batch
        rows = [sequences == sequence for sequence in np.unique(sequences)]
        return [
            (tokens[own], positions[own], np.zeros(own.sum(), dtype=np.int32), targets[own], weights[own])
            for own in rows
        ]


def path_of(name: str, end: str) -> Path:
    return (FOLDER / "sparse" if name in SPARSE else FOLDER) / f"{name}{end}"


def load(name: str) -> Golden:
    """The golden model of that name."""
    with np.load(path_of(name, ".npz")) as file:
        numbers = dict(file)
    batch = tuple(numbers[key] for key in BATCH_KEYS)
    model = Model(str(path_of(name, ".gguf")))
    lora = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path_of(name, "-lora.gguf")).tensors}
    kinds = sorted({re.sub(r"blk\.\d+\.(.+)\.weight\.lora_[ab]", r"\1", tensor) for tensor in lora})

    def new_trainer(*, recompute_layers: int = 0, threads: int = 2, **options: Any) -> Trainer:
        adapter = Adapter(model, rank=int(numbers["rank"]), alpha=float(numbers["alpha"]), targets=kinds)
        assert sorted(adapter.tensor_names()) == sorted(lora)
        for tensor, values in lora.items():
            adapter.set(tensor, values)
        context = int(numbers["positions"].max()) + 1
        trainer = Trainer(adapter, context=context, threads=threads, **options)
        trainer.recompute_layers = recompute_layers
        return trainer

    gradients = {key: value for key, value in numbers.items() if key.endswith((".lora_a", ".lora_b"))}
    return Golden(numbers, gradients, batch, new_trainer)


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


def relative_errors(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Norm of the difference over norm of the expected, by tensor."""
    assert actual.keys() == expected.keys()
    assert all(actual[name].shape == expected[name].shape for name in expected)
    return {
        name: float(np.linalg.norm(actual[name] - expected[name]) / np.linalg.norm(expected[name])) for name in expected
    }


def assert_all_below(errors: dict[str, float], limit: float) -> None:
    # "not below" instead of "above": NaN must fail
    too_far = {name: error for name, error in errors.items() if not error < limit}
    assert not too_far


def test_every_required_architecture_is_there() -> None:
    assert set(NAMES) >= REQUIRED


def test_files_are_small() -> None:
    assert {path.name: size for path in FOLDER.rglob("*.gguf") if (size := path.stat().st_size) >= 300_000} == {}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    assert sum(path.stat().st_size for path in (FOLDER / "sparse").iterdir()) < 10_000_000


@pytest.mark.parametrize("name", SPARSE)
def test_llama_cpp_equals_pytorch(name: str, tmp_path: Path) -> None:
    """The files mean the same to llama.cpp as to PyTorch: the model, the adapter on it, and both merged."""
    golden = load(name)
    base, lora, merged = (str(path) for path in (path_of(name, ".gguf"), path_of(name, "-lora.gguf"), tmp_path / "m"))
    scales = {linear.name: linear.scale for linear in Model(base).linears() if linear.scale}
    merge(base, [(lora, 1.0)], merged, scales=scales)
    for key, path, adapter_path in (
        ("base_log_probs", base, None),
        ("log_probs", base, lora),
        ("log_probs", merged, None),
    ):
        model = Model(path)
        actual = np.concatenate(
            [
                decode_log_probs(model, np.append(tokens, targets[-1:]), adapter_path=adapter_path)
                for tokens, _, _, targets, _ in golden.samples()
            ]
        )
        difference = np.abs(actual - golden.numbers[key])
        if name.startswith("gemma4"):  # llama.cpp looks GELU up in a table of half-precision values
            assert np.median(difference) < 1e-3
            assert difference.max() < 2e-2
        else:
            assert difference.max() < 1e-4, (path, key)


def assert_loss_and_log_probs_equal_pytorch(golden: Golden, result: BatchResult) -> None:
    weights = golden.numbers["weights"]
    assert result.loss_sum == pytest.approx(float(golden.numbers["loss_sum"]), rel=1e-5)
    assert result.weight_sum == pytest.approx(float(weights.sum()))
    assert result.n_tokens == len(weights)
    assert result.n_targets == np.count_nonzero(weights)
    expected = np.where(weights == 0, np.nan, golden.numbers["log_probs"])
    np.testing.assert_allclose(result.log_probs, expected, rtol=0, atol=1e-4)


def test_loss_and_log_probs_equal_pytorch(golden: Golden) -> None:
    trainer = golden.new_trainer()
    for result in (trainer.evaluate(*golden.batch), trainer.accumulate(*golden.batch)):
        assert_loss_and_log_probs_equal_pytorch(golden, result)


def test_gradients_equal_pytorch(golden: Golden) -> None:
    trainer = golden.new_trainer()
    trainer.accumulate(*golden.batch)
    gradients = trainer.gradients()
    assert all(np.any(gradient) for gradient in gradients.values())  # K and V of every layer included
    assert_all_below(relative_errors(gradients, golden.gradients), 1e-4)


def assert_adamw_follows_pytorch(golden: Golden, trainer: Trainer) -> None:
    numbers = golden.numbers
    losses = []
    for _ in range(len(numbers["losses"]) - 1):
        result = trainer.accumulate(*golden.batch)
        losses.append(result.loss_sum / result.weight_sum)
        trainer.step(
            float(numbers["lr"]),
            beta1=float(numbers["beta1"]),
            beta2=float(numbers["beta2"]),
            epsilon=float(numbers["epsilon"]),
            weight_decay=float(numbers["weight_decay"]),
        )
    result = trainer.evaluate(*golden.batch)
    losses.append(result.loss_sum / result.weight_sum)
    assert trainer.n_steps == 20
    np.testing.assert_allclose(losses, numbers["losses"], rtol=1e-3)


def test_adamw_follows_pytorch(golden: Golden) -> None:
    assert_adamw_follows_pytorch(golden, golden.new_trainer())


def test_packed_samples_equal_samples_alone(golden: Golden) -> None:
    packed, alone = golden.new_trainer(), golden.new_trainer()
    packed_loss = packed.accumulate(*golden.batch).loss_sum
    alone_loss = sum(alone.accumulate(*sample).loss_sum for sample in golden.samples())
    assert packed_loss == pytest.approx(alone_loss, rel=1e-5)
    assert_all_below(relative_errors(packed.gradients(), alone.gradients()), 1e-5)


def test_recomputation_and_threads_change_no_bit(golden: Golden) -> None:
    trainer = golden.new_trainer()
    loss = trainer.accumulate(*golden.batch).loss_sum
    for settings in ({"recompute_layers": 1}, {"recompute_layers": 2, "threads": 1}, {"threads": 1}, {"threads": 3}):
        other = golden.new_trainer(**settings)
        assert other.accumulate(*golden.batch).loss_sum == loss
        for name, gradient in trainer.gradients().items():
            assert np.array_equal(other.gradients()[name], gradient), name
