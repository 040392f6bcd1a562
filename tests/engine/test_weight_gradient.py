"""The gradient through a quantized weight, for every type that a weight can have."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ggtune import _core
from ggtune.errors import GgtuneError

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K"]
TYPES += ["iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq1_m", "mxfp4", "nvfp4", "tq1_0", "tq2_0", "q1_0", "q2_0"]
# Their quantizers need an importance matrix, which quantize() does not take.
MATRIX_TYPES = ["iq2_xxs", "iq2_xs", "iq1_s"]


def make_weight(ggml_type: str, n_out: int, n_in: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Quantized normal values; of a type that can't be had so, random codes (any is a valid one) behind a scale."""
    if ggml_type not in MATRIX_TYPES:
        return _core.quantize(ggml_type, rng.normal(size=(n_out, n_in)).astype(np.float32))
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[ggml_type.upper()]]
    data = rng.integers(0, 256, (n_out, n_in // block, block_bytes)).astype(np.uint8)
    data[:, :, :2] = np.full(1, 0.1, np.float16).view(np.uint8)  # they all begin with their scale
    return data.reshape(n_out, -1)


@pytest.mark.parametrize("ggml_type", TYPES + MATRIX_TYPES)
def test_weight_gradient(ggml_type: str) -> None:
    """Every type that a weight can have. The C++ test of the kernels does the same, with importance matrices."""
    rng = np.random.default_rng(0)
    n_in, n_out = 512, 70  # no multiple of a tile
    weight = make_weight(ggml_type, n_out, n_in, rng)
    dequantized = _core.dequantize(ggml_type, weight, n_in).astype(np.float64)
    for n_tokens in (1, 37):
        d_output = rng.normal(size=(n_tokens, n_out)).astype(np.float32)
        expected = d_output.astype(np.float64) @ dequantized
        reference = _core.weight_gradient_input(ggml_type, weight, d_output, n_in, reference=True)
        results = [_core.weight_gradient_input(ggml_type, weight, d_output, n_in, threads=n) for n in (1, 2, 3)]
        for each in (reference, *results):
            assert each.shape == expected.shape
            assert np.linalg.norm(each - expected) < 1e-5 * np.linalg.norm(expected)
        assert np.linalg.norm(results[0] - reference) < 1e-5 * np.linalg.norm(reference)
        assert all(np.array_equal(results[0], each) for each in results[1:])


def test_every_type_is_tried() -> None:
    with pytest.raises(GgtuneError) as caught:
        _core.dequantize("none", np.zeros(0, np.uint8), 32)
    known = str(caught.value).partition("known are ")[2].rstrip(".").split(", ")
    assert set(known) == {*TYPES, *MATRIX_TYPES}


def test_weight_gradient_of_a_wrong_shape() -> None:
    weight = _core.quantize("q8_0", np.ones((4, 64), np.float32))
    for d_output, n_in in ((np.ones((2, 5)), 64), (np.ones((2, 4)), 32), (np.ones((2, 4)), 0), (np.ones(4), 64)):
        with pytest.raises(GgtuneError, match="a row of n_in values of type q8_0 for each column"):
            _core.weight_gradient_input("q8_0", weight, d_output.astype(np.float32), n_in)
