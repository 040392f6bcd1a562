"""What llama.cpp would end the process for is an exception of every call that decodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import gguf_files
import numpy as np
import pytest
import refused_models

from ggtune import _core
from ggtune._core import Model
from ggtune.errors import GgtuneError, ModelError
from ggtune.generate import answers

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "scripts"))
from fuzzing import worker  # noqa: E402

TOKENS = np.array([1, 5, 7, 9], dtype=np.int32)


def collect(model: Model) -> None:
    _core.ImatrixCollector(model, context=8).add(TOKENS)


CALLS: dict[str, Callable[[Model], object]] = {
    "generate": lambda model: next(_core.Generator(model, TOKENS)),
    "decode_log_probs": lambda model: _core.decode_log_probs(model, TOKENS),
    "score": lambda model: _core.Scorer(model, n_tokens=8, n_sequences=1).logits(
        np.array([1, 5], np.int32), np.zeros(2, np.int32), np.ones(2, np.bool_)
    ),
    "answer": lambda model: list(answers(model, [[1, 5]], max_tokens=2)),
    "imatrix": collect,
}


def message(call: Callable[[Model], object], path: Path) -> str:
    """Run the call in a child, which an abort would end, and then again to get its message."""

    def run(_: Path) -> None:
        call(Model(str(path)))

    assert worker.run(run, [b""]) == ["refused"]
    with pytest.raises(ModelError) as caught:
        call(Model(str(path)))
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_an_encoder_decoder(name: str, tmp_path: Path) -> None:
    path = refused_models.write_encoder_decoder(tmp_path / "t5.gguf")
    assert "this model can't be asked or scored: it has an encoder" in message(CALLS[name], path)


@pytest.mark.parametrize("name", CALLS)
def test_experts_without_their_gating(name: str, tmp_path: Path) -> None:
    whole = refused_models.write_mixture(tmp_path / "whole.gguf", gating=1)
    CALLS[name](Model(str(whole)))
    path = refused_models.write_mixture(tmp_path / "cut.gguf")
    assert "the key dots1.expert_gating_func is missing" in message(CALLS[name], path)


@pytest.mark.parametrize("tensor", ["blk.0.ssm_a", "blk.0.ssm_conv1d.weight"])
@pytest.mark.parametrize("name", CALLS)
def test_a_weight_of_a_type_that_its_op_does_not_take(name: str, tensor: str, tmp_path: Path) -> None:
    """By its name it may be a matrix: only the graph tells that it is none."""
    whole = refused_models.write_recurrent(tmp_path / "whole.gguf")
    CALLS[name](Model(str(whole)))
    path = refused_models.write_recurrent(tmp_path / "f16.gguf", types={tensor: "f16"})
    assert f"tensor {tensor} is of type f16" in message(CALLS[name], path)


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    arrays = gguf_files.model_arrays()
    arrays["output_norm.weight"][:] = np.nan
    model = Model(str(gguf_files.write_model(tmp_path / "nan.gguf", arrays)))
    with pytest.raises(ModelError, match="values that are not numbers"):
        next(_core.Generator(model, TOKENS))


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_threads(threads: int, tmp_path: Path) -> None:
    model = Model(str(gguf_files.write_model(tmp_path / "tiny.gguf")))
    with pytest.raises(GgtuneError, match="there must be 1 to 512 threads"):
        _core.decode_log_probs(model, TOKENS, threads=threads)


def test_positions_of_each_sequence() -> None:
    """A model with 64 learned positions scores several sequences that are longer together, but none that is alone."""
    model = Model(str(ROOT / "tests/golden/gpt2.gguf"))
    assert all(len(answer.tokens) <= 2 for _, answer in answers(model, [[5] * 40] * 3, max_tokens=2))
    with pytest.raises(GgtuneError, match="64 tokens; the model's context is 64"):
        list(answers(model, [[5] * 64], max_tokens=2))
    generator = _core.BatchGenerator(model, n_slots=2, context=64)
    with pytest.raises(GgtuneError, match="knows 64 positions: a context of 65"):
        _core.BatchGenerator(model, n_slots=2, context=65)
    with pytest.raises(GgtuneError, match="prompt 1, of 64 tokens, and an answer don't fit the context of 64"):
        generator.add([5] * 64, max_tokens=2)


def test_the_source_folder_is_not_told(tmp_path: Path) -> None:
    path = refused_models.write_mixture(tmp_path / "cut.gguf")
    assert os.sep not in message(CALLS["generate"], path).removeprefix(str(path))
