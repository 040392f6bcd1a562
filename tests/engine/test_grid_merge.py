"""Merging on the base's own quantization grid: small changes are kept, large ones lose no more than by quantizing."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import CODES, data_of, random_pairs, scales_of, write_adapter
from numpy.typing import NDArray

from ggtune import _core

FloatArray = NDArray[np.float32]
NAME = "blk.0.ffn_up.weight"
EXPERTS = "blk.0.ffn_up_exps.weight"
SHAPE = 1024, 768


def one_tensor(path: Path, array: FloatArray, ggml_type: str, name: str = NAME) -> Path:
    """A model file of one tensor: what merging reads without a sample."""
    writer = gguf.GGUFWriter(path, "llama")
    if ggml_type == "f32":
        writer.add_tensor(name, array)
    else:
        data = _core.quantize(ggml_type, array.reshape(-1, array.shape[-1]))
        raw_type = gguf.GGMLQuantizationType[ggml_type.upper()]
        writer.add_tensor(name, data.reshape(*array.shape[:-1], -1), raw_dtype=raw_type)
    return gguf_files.finish(writer)


class Case:
    """A random matrix of a type, and an adapter that changes it by so many steps of its grid (root mean square)."""

    def __init__(self, folder: Path, ggml_type: str, steps: float, *, step: float | None = None) -> None:
        self.folder = folder
        self.array = np.random.default_rng(0).normal(0.005, 0.05, SHAPE).astype(np.float32)
        self.base = one_tensor(folder / "base.gguf", self.array, ggml_type)
        self.before = gguf_files.values(self.base, NAME)
        # the error of rounding to a grid is evenly spread over a step
        step = step or float(np.std(self.before - self.array)) * 12**0.5
        ((self.a, self.b),) = random_pairs([NAME], {NAME: self.array}).values()
        self.b *= np.float32(steps * step / np.std(2.0 * self.b @ self.a))
        self.adapter = write_adapter(folder / "adapter.gguf", {NAME: (self.a, self.b)})
        self.delta = 2.0 * self.b.astype(np.float64) @ self.a.astype(np.float64)

    def merge(self, **options: object) -> Path:
        output = self.folder / "merged.gguf"
        self.counts = _core.merge(str(self.base), [(str(self.adapter), 1.0)], str(output), **options)  # type: ignore[arg-type]
        return output

    def lost(self, merged: Path) -> float:
        """How far B^T (merged - base) A^T, what the adapter's outputs see, is from B^T delta A^T, as a part of it."""
        change = gguf_files.values(merged, NAME).astype(np.float64) - self.before
        wanted = self.b.T @ self.delta @ self.a.T
        return float(np.linalg.norm(self.b.T @ change @ self.a.T - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("ggml_type", CODES)
def test_small_change_is_kept(ggml_type: str, tmp_path: Path) -> None:
    case = Case(tmp_path, ggml_type, 0.003)
    nearest = case.merge(rounding="nearest")
    assert data_of(nearest, NAME) == data_of(case.base, NAME)  # all of it is lost
    unbiased = case.merge(threads=2)
    assert case.lost(unbiased) < 0.15
    assert np.array_equal(scales_of(unbiased, NAME, ggml_type), scales_of(case.base, NAME, ggml_type))
    counts = case.counts["tensors"][NAME]
    assert counts["from"] == counts["to"] == ggml_type
    assert counts["n_weights"] == case.array.size
    assert counts["n_moved"] == np.count_nonzero(gguf_files.values(unbiased, NAME) != case.before)
    assert 0.0005 < counts["n_moved"] / case.array.size < 0.01
    assert counts["change"] == pytest.approx(np.sum(case.delta**2), rel=1e-4)
    error = np.sum((gguf_files.values(unbiased, NAME) - case.before - case.delta) ** 2)
    assert counts["variance"] == pytest.approx(error, rel=0.1)


@pytest.mark.parametrize("ggml_type", CODES)
def test_change_of_a_quarter_step_is_kept(ggml_type: str, tmp_path: Path) -> None:
    """With no block quantized anew but here and there, and weights at the ends of their grid."""
    case = Case(tmp_path, ggml_type, 0.25)
    merged = case.merge(threads=2)
    assert case.lost(merged) < 0.05
    same = (scales_of(merged, NAME, ggml_type) == scales_of(case.base, NAME, ggml_type)).all(axis=1)
    assert same.mean() > 0.85


@pytest.mark.parametrize("ggml_type", CODES)
def test_large_change_is_quantized_anew(ggml_type: str, tmp_path: Path) -> None:
    case = Case(tmp_path, ggml_type, 4.0)
    merged = gguf_files.values(case.merge(threads=2), NAME)
    wanted = (case.before + case.delta).astype(np.float32)
    quantized = _core.dequantize(ggml_type, _core.quantize(ggml_type, wanted), SHAPE[1])
    errors = [np.sqrt(np.mean((each - wanted) ** 2)) for each in (merged, quantized)]
    assert errors[0] < 1.1 * errors[1]


def test_small_change_of_bf16_is_kept(tmp_path: Path) -> None:
    step = 2.0**-12  # of values of about 0.05
    case = Case(tmp_path, "bf16", 0.003, step=step)
    assert case.lost(case.merge(rounding="nearest")) > 0.9  # only values next to 0 have steps that are small enough
    merged = case.merge(threads=2)
    assert case.lost(merged) < 0.15
    assert case.counts["tensors"][NAME]["to"] == "bf16"
    assert np.abs(gguf_files.values(merged, NAME) - case.before).max() <= 2.0**-9  # a step of the largest values


def test_f16_is_rounded_to_nearest(tmp_path: Path) -> None:
    case = Case(tmp_path, "f16", 0.6, step=2.0**-15)
    merged = gguf_files.values(case.merge(), NAME)
    wanted = case.before + case.delta
    step = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float64)
    assert (np.abs(merged - wanted) <= 0.501 * step).all()


@pytest.mark.parametrize("ggml_type", CODES)
def test_seed_and_threads(ggml_type: str, tmp_path: Path) -> None:
    case = Case(tmp_path, ggml_type, 0.1)
    first = data_of(case.merge(seed=5), NAME)
    for threads in (2, 3):
        assert data_of(case.merge(seed=5, threads=threads), NAME) == first
    other = case.merge(seed=6, threads=2)
    assert data_of(other, NAME) != first
    assert case.lost(other) < 0.1


@pytest.mark.parametrize("ggml_type", CODES)
def test_experts_are_merged_on_their_grid(ggml_type: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_expert, n_out, n_in, rank = 3, 512, 768, 4
    array = rng.normal(0, 0.05, (n_expert, n_out, n_in)).astype(np.float32)
    base = one_tensor(tmp_path / "base.gguf", array, ggml_type, EXPERTS)
    a = rng.normal(0, n_in**-0.5, (n_expert, rank, n_in)).astype(np.float32)
    b = rng.normal(0, 2e-5 if ggml_type == "q8_0" else 3e-4, (n_expert, n_out, rank)).astype(np.float32)
    b[1] = 0
    b[2] *= 2
    adapter = write_adapter(tmp_path / "adapter.gguf", {EXPERTS: (a, b)})
    output = tmp_path / "merged.gguf"
    counts = _core.merge(str(base), [(str(adapter), 1.0)], str(output), threads=2)
    assert counts["n_changed_rows"] == 2 * n_out
    before, after = (
        gguf_files.values(path, EXPERTS).reshape(array.shape).astype(np.float64) for path in (base, output)
    )
    assert np.array_equal(scales_of(output, EXPERTS, ggml_type), scales_of(base, EXPERTS, ggml_type))
    assert np.array_equal(after[1], before[1])
    for expert in (0, 2):
        wanted = b[expert].T @ (2.0 * b[expert] @ a[expert]) @ a[expert].T
        found = b[expert].T @ (after[expert] - before[expert]) @ a[expert].T
        assert np.linalg.norm(found - wanted) < 0.3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("ggml_type", ["q4_0", "q6_K", "mxfp4"])
def test_experts_are_rounded_without_bias_each_on_its_own(ggml_type: str, tmp_path: Path) -> None:
    """The mean over seeds is what the adapter adds; equal experts with equal pairs are rounded by other numbers."""
    rng = np.random.default_rng(0)
    n_expert, n_out, n_in, rank = 3, 64, 256, 2
    array = np.repeat(rng.normal(0, 0.05, (1, n_out, n_in)), n_expert, axis=0).astype(np.float32)
    base = one_tensor(tmp_path / "base.gguf", array, ggml_type, EXPERTS)
    a = np.repeat(rng.normal(0, n_in**-0.5, (1, rank, n_in)), n_expert, axis=0).astype(np.float32)
    b = np.repeat(rng.normal(0, 1e-3, (1, n_out, rank)), n_expert, axis=0).astype(np.float32)
    a[2] = -a[2]
    adapter = write_adapter(tmp_path / "adapter.gguf", {EXPERTS: (a, b)}, alpha=float(rank))
    output = tmp_path / "merged.gguf"
    before = gguf_files.values(base, EXPERTS).reshape(array.shape).astype(np.float64)
    n_seeds, mean = 40, np.zeros_like(before)
    for seed in range(n_seeds):
        _core.merge(str(base), [(str(adapter), 1.0)], str(output), seed=seed)
        after = gguf_files.values(output, EXPERTS).reshape(array.shape)
        assert (after[0] != after[1]).any()
        mean += (after - before) / n_seeds
    for expert in range(n_expert):
        wanted = (b[expert] @ a[expert]).astype(np.float64)
        assert np.sum(mean[expert] * wanted) / np.sum(wanted**2) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("ggml_type", "wanted"), [("bf16", "bf16"), ("iq2_xs", "q4_K"), ("tq1_0", "q4_K")])
def test_experts_of_types_without_a_grid(ggml_type: str, wanted: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = n_expert, n_out, n_in = 3, 16, 256
    raw_type = gguf.GGMLQuantizationType[ggml_type.upper()]
    if ggml_type == "bf16":
        base = one_tensor(tmp_path / "base.gguf", rng.normal(0, 0.05, shape).astype(np.float32), ggml_type, EXPERTS)
    else:
        # any bytes are valid blocks of these types; 0 of a scale's bytes keeps it from being infinite
        writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
        n_bytes = gguf.quants.quant_shape_to_byte_shape(shape, raw_type)
        writer.add_tensor(EXPERTS, np.zeros(n_bytes, np.uint8), raw_dtype=raw_type)
        base = gguf_files.finish(writer)
    a = rng.normal(0, n_in**-0.5, (n_expert, 2, n_in)).astype(np.float32)
    b = rng.normal(0, 0.1, (n_expert, n_out, 2)).astype(np.float32)
    adapter = write_adapter(tmp_path / "adapter.gguf", {EXPERTS: (a, b)}, alpha=2.0)
    for outtype in (None, "f16", "q8_0"):
        output = tmp_path / "merged.gguf"
        counts = _core.merge(str(base), [(str(adapter), 1.0)], str(output), outtype=outtype)
        assert counts["tensors"][EXPERTS]["to"] == (outtype or wanted)
        expected = gguf_files.values(base, EXPERTS).reshape(shape) + b @ a
        for merged, exact in zip(gguf_files.values(output, EXPERTS).reshape(shape), expected, strict=True):
            assert np.sqrt(np.mean((merged - exact) ** 2)) < 0.1 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(
    ("ggml_type", "wanted"),
    [
        ("iq1_s", "q4_K"),
        ("iq1_m", "q4_K"),
        ("iq2_xs", "q4_K"),
        ("iq3_xxs", "q4_K"),
        ("tq1_0", "q4_K"),
        ("tq2_0", "q4_K"),
    ],
)
def test_types_without_a_grid_take_the_next_that_has_one(ggml_type: str, wanted: str, tmp_path: Path) -> None:
    raw_type = gguf.GGMLQuantizationType[ggml_type.upper()]
    n_bytes = gguf.quants.quant_shape_to_byte_shape(SHAPE, raw_type)
    # any bytes are valid blocks of these types; 0 of a scale's bytes keeps it from being infinite
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tensor(NAME, np.zeros(n_bytes, np.uint8), raw_dtype=raw_type)
    base = gguf_files.finish(writer)
    pairs = random_pairs([NAME], {NAME: np.zeros(SHAPE, np.float32)})
    adapter = write_adapter(tmp_path / "adapter.gguf", pairs)
    output = tmp_path / "merged.gguf"
    counts = _core.merge(str(base), [(str(adapter), 1.0)], str(output))
    tensor = counts["tensors"][NAME]
    assert (tensor["from"], tensor["to"]) == (ggml_type, wanted)
    assert gguf_files.tensors(output)[NAME].tensor_type.name == wanted.upper()
    a, b = pairs[NAME]
    expected = gguf_files.values(base, NAME) + 2.0 * b @ a
    error = gguf_files.values(output, NAME) - expected
    assert np.sqrt(np.mean(error**2)) < 0.1 * np.sqrt(np.mean(expected**2))
