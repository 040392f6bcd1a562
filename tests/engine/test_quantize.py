"""ggml's quantizers on arrays and on whole files, and what the module says of machine and build."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import VOCABULARY, model_arrays, write_model

from ggtune import _core
from ggtune.errors import GgtuneError, ModelError

# The largest relative error (root mean square) that each type may have on normally distributed values.
ERRORS = {
    "f32": 0.0,
    "f16": 3e-4,
    "bf16": 3e-3,
    "q8_0": 0.01,
    "q6_K": 0.025,
    "q5_K": 0.05,
    "q5_1": 0.05,
    "q5_0": 0.06,
    "q4_K": 0.09,
    "q4_1": 0.1,
    "q4_0": 0.11,
    "iq4_nl": 0.1,
    "iq4_xs": 0.1,
    "q3_K": 0.2,
    "iq3_s": 0.2,
    "iq3_xxs": 0.25,
    "q2_K": 0.35,
    "mxfp4": 0.2,
}


@pytest.mark.parametrize("ggml_type", ERRORS)
def test_round_trip(ggml_type: str) -> None:
    values = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    data = _core.quantize(ggml_type, values)
    assert data.dtype == np.uint8
    assert data.shape == gguf.quants.quant_shape_to_byte_shape(
        values.shape, gguf.GGMLQuantizationType[ggml_type.upper()]
    )
    back = _core.dequantize(ggml_type.upper(), data, 512)
    assert back.shape == values.shape
    assert back.dtype == np.float32
    error = np.sqrt(np.mean((back - values) ** 2) / np.mean(values**2))
    assert error <= ERRORS[ggml_type]
    assert ERRORS[ggml_type] == 0 or error > ERRORS[ggml_type] / 10


@pytest.mark.parametrize("ggml_type", ["f16", "bf16", "q8_0", "q4_0", "q4_K", "q5_K", "q6_K", "q3_K", "q2_K", "iq4_xs"])
def test_dequantize_agrees_with_gguf_py(ggml_type: str) -> None:
    kind = gguf.GGMLQuantizationType[ggml_type.upper()]
    data = _core.quantize(ggml_type, np.random.default_rng(1).normal(size=(4, 512)).astype(np.float32))
    expected = gguf.quants.dequantize(data, kind)
    assert np.abs(_core.dequantize(ggml_type, data, 512) - expected).max() < 1e-6


def test_wrong_arrays() -> None:
    values = np.ones((2, 256), np.float32)
    with pytest.raises(GgtuneError, match="unknown tensor type 'q7'"):
        _core.quantize("q7", values)
    with pytest.raises(GgtuneError, match="two dimensions"):
        _core.quantize("q8_0", values[0])
    with pytest.raises(GgtuneError, match="rows of 100 elements"):
        _core.quantize("q8_0", values[:, :100])
    with pytest.raises(GgtuneError, match="importance matrix"):
        _core.quantize("iq2_xxs", values)
    with pytest.raises(GgtuneError, match="rows of 100 elements"):
        _core.dequantize("q4_K", np.zeros(144, np.uint8), 100)
    with pytest.raises(GgtuneError, match="no multiple of the 144"):
        _core.dequantize("q4_K", np.zeros(100, np.uint8), 256)
    for bad, ggml_type in ((np.nan, "q4_K"), (np.inf, "iq4_nl"), (1e5, "f16")):
        with pytest.raises(GgtuneError, match="can't hold"):
            _core.quantize(ggml_type, np.where(np.arange(512).reshape(2, 256) == 300, np.float32(bad), values))


@pytest.mark.parametrize(
    ("file_type", "expected"),
    [("Q8_0", {"Q8_0"}), ("q4_k_m", {"Q4_K", "Q6_K"}), ("F16", {"F16"}), ("IQ4_XS", {"IQ4_XS", "Q5_K", "Q6_K"})],
)
def test_quantize_model(file_type: str, expected: set[str], tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    output = tmp_path / "output.gguf"
    _core.quantize_model(str(source), str(output), file_type, threads=2)
    tensors = gguf_files.tensors(output)
    assert {each.tensor_type.name for each in tensors.values() if len(each.shape) > 1} <= expected
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == file_type.upper().removesuffix("_M")
    original = model_arrays()["blk.0.ffn_up.weight"]
    assert np.abs(gguf_files.values(output, "blk.0.ffn_up.weight") - original).max() < 0.03
    assert gguf_files.field(output, "tokenizer.ggml.tokens") == VOCABULARY
    assert gguf_files.names(tmp_path) == ["output.gguf", "source.gguf"]


def test_wrong_models(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    quantized = write_model(tmp_path / "quantized.gguf", types="q8_0")
    output = tmp_path / "output.gguf"
    before = gguf_files.names(tmp_path)

    def message(source: Path, output: Path, file_type: str) -> str:
        with pytest.raises(GgtuneError) as caught:
            _core.quantize_model(str(source), str(output), file_type)
        assert gguf_files.names(tmp_path) == before
        return str(caught.value)

    assert "unknown file type 'Q9'" in message(source, output, "Q9")
    assert "importance matrix" in message(source, output, "IQ2_XXS")
    assert "is quantized already" in message(quantized, output, "Q4_0")
    assert "the source itself" in message(source, source, "Q4_0")
    assert "doesn't exist" in message(source, tmp_path / "missing" / "output.gguf", "Q4_0")
    assert "no such file" in message(tmp_path / "missing.gguf", output, "Q4_0")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    arrays = model_arrays()
    arrays["blk.0.ffn_up.weight"][3, 3] = np.nan
    source = write_model(tmp_path / "source.gguf", arrays)
    with pytest.raises(GgtuneError, match=r"source\.gguf: can't be quantized to Q8_0: .*blk\.0\.ffn_up\.weight"):
        _core.quantize_model(str(source), str(tmp_path / "output.gguf"), "Q8_0")
    assert gguf_files.names(tmp_path) == ["source.gguf"]


def test_truncated_model(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source.gguf")
    os.truncate(source, source.stat().st_size - 10)
    with pytest.raises(ModelError, match="truncated"):
        _core.quantize_model(str(source), str(tmp_path / "output.gguf"), "Q8_0")


def test_build_info() -> None:
    info = _core.build_info()
    assert set(info) == {"llama.cpp", "backends", "cpu", "cpu_features"}
    assert "CPU" in info["backends"]
    assert info["llama.cpp"]
