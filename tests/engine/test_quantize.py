"""ggml's quantizers on arrays and on whole files, and what the module says of machine and build."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from gguf_files import VOCABULARY, model_arrays, write_model

from ggtune import _core
from ggtune.errors import GgtuneError, ModelError

QUERY = "blk.0.attn_q.weight"

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
    [
        ("Q8_0", {"Q8_0"}),
        ("q4_k_m", {"Q4_K", "Q6_K"}),
        ("F16", {"F16"}),
        ("BF16", {"BF16"}),
        ("IQ4_XS", {"IQ4_XS", "Q5_K", "Q6_K"}),
        ("Q5_0", {"Q5_0", "Q6_K"}),
        ("Q6_K", {"Q6_K"}),
    ],
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
    needs = message(source, output, "IQ2_XXS")
    assert "blk.0.attn_q.weight becomes iq2_xxs" in needs
    assert "importance matrix is needed" in needs
    assert "is quantized already" in message(quantized, output, "Q4_0")
    assert "the source itself" in message(source, source, "Q4_0")
    assert "doesn't exist" in message(source, tmp_path / "missing" / "output.gguf", "Q4_0")
    assert "no such file" in message(tmp_path / "missing.gguf", output, "Q4_0")


def matrix_types(path: Path) -> dict[str, str]:
    # not by gguf-py, which does not know the newest types
    return {tensor.name: tensor.type for tensor in _core.Model(str(path)).tensors() if len(tensor.shape) > 1}


IMATRIX = {name: np.ones(array.shape[1], np.float32) for name, array in model_arrays().items() if array.ndim == 2}


@pytest.mark.parametrize(
    ("file_type", "prevailing"),
    [
        ("F32", "f32"),
        ("Q5_K", "q5_K"),
        ("Q4_1", "q4_1"),
        ("MXFP4_MOE", "q8_0"),  # experts alone are MXFP4
        ("IQ4_NL", "iq4_nl"),
        ("Q3_K_L", "q3_K"),
        ("IQ3_S", "iq3_s"),
        ("IQ3_XS", "iq3_s"),
        ("Q2_K", "q2_K"),
        ("Q2_K_S", "q2_K"),
        ("IQ2_XXS", "iq2_xxs"),
        ("TQ2_0", "tq2_0"),
        ("TQ1_0", "tq1_0"),
        ("Q2_0", "q2_0"),
        ("Q1_0", "q1_0"),
    ],
)
def test_file_types(file_type: str, prevailing: str, tmp_path: Path) -> None:
    source, output = write_model(tmp_path / "source.gguf"), tmp_path / "output.gguf"
    _core.quantize_model(str(source), str(output), file_type, threads=2, imatrix=IMATRIX)
    types = list(matrix_types(output).values())
    assert max(set(types), key=types.count) == prevailing
    tokens = np.array([1, 50, 60, 70], np.int32)
    assert np.isfinite(_core.decode_log_probs(_core.Model(str(output)), tokens)).all()


def test_every_file_type_has_a_name() -> None:
    names = _core.file_types()
    assert len(names) == len(set(names))
    assert {"Q4_K_M", "IQ1_M", "IQ2_M", "IQ3_XXS", "MXFP4_MOE", "Q2_K_S", "BF16"} <= set(names)


def test_given_types(tmp_path: Path) -> None:
    source, output = str(write_model(tmp_path / "source.gguf")), tmp_path / "output.gguf"

    def types(file_type: str, **options: object) -> dict[str, str]:
        _core.quantize_model(source, str(output), file_type, **options)  # type: ignore[arg-type]
        return matrix_types(output)

    mixture = types("Q4_K_M")
    assert mixture["output.weight"] == "q6_K"
    assert set(types("Q4_K_M", pure=True).values()) == {"q4_K"}
    assert types("Q4_K_M", leave_output_tensor=True)["output.weight"] == "f32"
    given = types("Q4_K_M", output_tensor_type="Q8_0", token_embedding_type="f16")
    assert given == mixture | {"output.weight": "q8_0", "token_embd.weight": "f16"}


def test_what_ggml_would_assert_of_given_types(tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "source.gguf"))
    narrow = str(Path(__file__).parents[1] / "golden" / "llama.gguf")  # rows of 32

    def message(source: str, file_type: str, **options: object) -> str:
        with pytest.raises(GgtuneError) as caught:
            _core.quantize_model(source, str(tmp_path / "output.gguf"), file_type, **options)  # type: ignore[arg-type]
        assert gguf_files.names(tmp_path) == ["source.gguf"]
        return str(caught.value)

    assert "no multiple of 256" in message(narrow, "Q8_0", token_embedding_type="q4_K")
    assert "no multiple of 256" in message(narrow, "Q8_0", output_tensor_type="q6_K")
    assert "unknown tensor type 'q9'" in message(source, "Q8_0", output_tensor_type="q9")
    blocks = {name: values for name, values in IMATRIX.items() if name.startswith("blk.")}
    assert "token_embd.weight becomes iq1_s" in message(source, "IQ1_S", imatrix=blocks, pure=True)
    given = message(source, "Q8_0", imatrix=blocks, output_tensor_type="iq2_xxs")
    assert "output.weight becomes iq2_xxs" in given
    assert "has no entry" in given
    del blocks["blk.1.ffn_up.weight"]
    assert "blk.1.ffn_up.weight becomes iq2_xxs" in message(source, "IQ2_XXS", imatrix=blocks)
    assert "mean of squares" in message(source, "Q4_0", imatrix={QUERY: np.full(256, np.nan, np.float32)})


def test_rows_that_are_no_multiple_fall_back(tmp_path: Path) -> None:
    narrow = str(Path(__file__).parents[1] / "golden" / "llama.gguf")
    for file_type, fallback in (("Q4_K_M", "q5_0"), ("IQ2_XXS", "iq4_nl"), ("Q2_K", "q4_0")):
        _core.quantize_model(narrow, str(tmp_path / "output.gguf"), file_type)
        assert fallback in matrix_types(tmp_path / "output.gguf").values()


def test_values_out_of_range(tmp_path: Path) -> None:
    arrays = model_arrays()
    arrays[QUERY][3] = 1e30  # finite, but its square is not: codebook quantizers assert
    source = str(write_model(tmp_path / "source.gguf", arrays))
    for file_type, name in (("IQ3_S", "iq3_s"), ("IQ1_S", "iq1_s"), ("F16", "f16")):
        with pytest.raises(GgtuneError, match=rf"{QUERY} has the value 1\d+\.\d+, which {name} can't hold"):
            _core.quantize_model(source, str(tmp_path / "output.gguf"), file_type, imatrix=IMATRIX)
    with pytest.raises(GgtuneError, match="which iq3_s can't hold"):
        _core.quantize("iq3_s", np.full((1, 256), 1e30, np.float32))
    # of other types it is a block's scale that no half float holds
    with pytest.raises(GgtuneError, match=rf"to Q4_0: {QUERY} holds values that the scale of a block can't reach"):
        _core.quantize_model(source, str(tmp_path / "output.gguf"), "Q4_0", threads=2)
    assert gguf_files.names(tmp_path) == ["source.gguf"]


def test_second_quantization_only_where_allowed(tmp_path: Path) -> None:
    quantized = str(write_model(tmp_path / "source.gguf", types="q5_K"))
    output = tmp_path / "output.gguf"
    with pytest.raises(ModelError, match="--allow-requantize"):
        _core.quantize_model(quantized, str(output), "Q8_0")
    _core.quantize_model(quantized, str(output), "Q8_0", allow_requantize=True)
    difference = gguf_files.values(output, QUERY) - gguf_files.values(Path(quantized), QUERY)
    assert np.abs(difference).max() < 1e-3


def test_alignment_of_the_output_is_the_default(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "source.gguf", "llama")
    writer.add_custom_alignment(128)
    base = write_model(tmp_path / "base.gguf")
    for key, field in gguf.GGUFReader(base).fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind, of = field.types[0], field.types[-1]
            writer.add_key_value(key, field.contents(), kind, sub_type=of if kind == gguf.GGUFValueType.ARRAY else None)
    for name, tensor in gguf_files.tensors(base).items():
        writer.add_tensor(name, np.array(tensor.data))
    source = gguf_files.finish(writer)
    _core.quantize_model(str(source), str(tmp_path / "output.gguf"), "Q8_0")
    # llama.cpp copies the key and writes with its own alignment: every tensor but the first would be read askew
    assert gguf_files.field(tmp_path / "output.gguf", "general.alignment") == 32
    difference = gguf_files.values(tmp_path / "output.gguf", QUERY) - model_arrays()[QUERY]
    assert np.abs(difference).max() < 0.01


def test_two_at_a_time(tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "source.gguf"))
    outputs = [tmp_path / f"{i}.gguf" for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(_core.quantize_model, source, str(path), "Q4_K_M", threads=2) for path in outputs]
        futures.append(pool.submit(_core.Model, source))  # logs meanwhile
        for future in futures:
            future.result()
    assert len({path.read_bytes() for path in outputs}) == 1


def test_full_disk(make_disk: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "source.gguf"))
    disk = make_disk("1m")
    with pytest.raises(GgtuneError, match="make room"):
        _core.quantize_model(source, str(disk / "output.gguf"), "Q8_0")
    assert gguf_files.names(disk) == []


def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    arrays = model_arrays()
    arrays["token_embd.weight"] = np.tile(arrays["token_embd.weight"], (100, 1))
    vocabulary = [*VOCABULARY, *(f"t{i}" for i in range(len(arrays["token_embd.weight"]) - len(VOCABULARY)))]
    source = write_model(tmp_path / "source.gguf", arrays, vocabulary=vocabulary)
    threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):  # some seconds on one thread
        _core.quantize_model(str(source), str(tmp_path / "output.gguf"), "IQ3_S")
    assert gguf_files.names(tmp_path) == ["source.gguf"]


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
    assert set(info) == {"llama.cpp", "backends", "cpu", "cpu_features", "cpu_variant"}
    assert "CPU" in info["backends"]
    assert info["llama.cpp"]
