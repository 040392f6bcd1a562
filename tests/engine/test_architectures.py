"""Every architecture of the pinned llama.cpp: right gradients, with and without recomputation, or a clear refusal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from architectures import files, verdict
from ggtune._core import Adapter, Model, Trainer, decode_log_probs
from ggtune.errors import GgtuneError
from ggtune.gguf.architectures import architectures

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]

WHY_NOT = verdict.read_page()
TRAINABLE = [name for name in files.NAMES if not WHY_NOT.get(name, "not in docs/architectures.md")]
LLAMA_CPP = Path(__file__).resolve().parents[2] / "vendor" / "llama.cpp"

SCANS = "SSM_SCAN|GATED_DELTA_NET|GATED_LINEAR_ATTN|RWKV_WKV6|RWKV_WKV7"

# of no model in the tests: a part of llama.cpp's quantizer, one without a graph, a decoder of sounds, and models that
# draft for another and can't be loaded alone
WITHOUT_MODEL = {"clip", "gptj", "wavtokenizer-dec", "gemma4-assistant", "eagle3", "dflash", "(unknown)"}


def make_batch(model: Model, seed: int = 0) -> Batch:
    """Three samples of unequal length in one micro-batch, with weights on most of their tokens."""
    rng = np.random.default_rng(seed)
    lengths = (11, 5, 8)
    tokens, targets = rng.integers(3, model.n_vocab, (2, sum(lengths)), dtype=np.int32)
    if model.architecture == "chameleon":
        targets %= 4  # llama.cpp rules out its other tokens: they are those of images
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    weights = np.where(positions < 2, 0, rng.uniform(0.5, 1.5, sum(lengths))).astype(np.float32)
    return tokens, positions, sequences, targets, weights


@pytest.mark.parametrize("name", TRAINABLE)
def test_recomputation_changes_no_bit(tmp_path: Path, name: str) -> None:
    model = Model(str(files.write_model(tmp_path, name)))
    batch = make_batch(model)
    first = None
    for n_layers in sorted({0, 1, model.n_layer // 2, model.n_layer - 1, model.n_layer}):
        trainer = verdict.make_trainer(model, dropout=0.1)
        assert trainer.n_recomputable_layers == model.n_layer
        trainer.recompute_layers = n_layers
        result = trainer.accumulate(*batch)
        gradients = trainer.gradients()
        assert all(gradient.any() for gradient in gradients.values())
        bits = [result.log_probs.tobytes(), *(gradient.tobytes() for gradient in gradients.values())]
        first = bits if first is None else first
        assert bits == first, f"{n_layers} of {model.n_layer} layers computed again"


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradient_is_the_slope_of_the_loss(tmp_path: Path, name: str) -> None:
    """By finite differences, along the gradient itself and a random direction together."""
    model = Model(str(files.write_model(tmp_path, name)))
    batch = make_batch(model)
    trainer = verdict.make_trainer(model, precision="f32")
    trainer.recompute_layers = model.n_layer - 1
    trainer.accumulate(*batch)
    adapter, gradients = trainer.adapter, trainer.gradients()
    rng = np.random.default_rng(1)
    noise = {key: rng.normal(size=gradient.shape) for key, gradient in gradients.items()}
    direction = {key: gradients[key] / norm(gradients) + noise[key] / norm(noise) for key in gradients}
    start = {key: adapter.get(key) for key in gradients}

    def loss(step: float) -> float:
        for key, values in start.items():
            adapter.set(key, (values + step * direction[key]).astype(np.float32))
        return float(trainer.evaluate(*batch).loss_sum)

    step = min(1e-3, 0.05 / norm(gradients))  # short where the loss is steep: it bends there
    slope = (loss(step) - loss(-step)) / (2 * step)
    expected = sum(float((gradients[key] * direction[key]).sum()) for key in gradients)
    assert slope == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_is_trained_is_what_llama_cpp_computes(tmp_path: Path, name: str) -> None:
    """Log-probabilities of packed samples against those of each alone through llama_decode."""
    model = Model(str(files.write_model(tmp_path, name)))
    tokens, positions, sequences, _, _ = make_batch(model)
    if model.architecture == "chameleon":
        pytest.skip("llama.cpp rules out the tokens of images in the first row of a batch alone")
    adapter = Adapter(model, rank=1, alpha=1.0, targets=[model.linears()[0].kind])  # B is zero
    # as long as llama_decode's, for the same factors of RoPE, where positions are not learned
    context = 64 if "position_embd.weight" in files.tensor_shapes(name) else 256
    trainer = Trainer(adapter, context=context, threads=1, precision="llama.cpp")
    follows = np.append(positions[1:] > 0, False)
    result = trainer.evaluate(tokens, positions, sequences, np.roll(tokens, -1), follows.astype(np.float32))
    expected = [decode_log_probs(model, tokens[sequences == sample]) for sample in np.unique(sequences)]
    np.testing.assert_allclose(result.log_probs[follows], np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_out_of_ggmls_own_nodes_are_the_same(tmp_path: Path, name: str) -> None:
    """After the same forward pass, llama.cpp's: what is left are the roundings of float32."""
    model = Model(str(files.write_model(tmp_path, name)))
    try:
        trainers = [verdict.make_trainer(model, precision="llama.cpp", ops=ops) for ops in ("cpu", "ggml")]
    except GgtuneError as error:
        if not re.search(f"ops=ggml has no gradient for ({SCANS})$", str(error)):
            raise
        pytest.skip("a scan's gradient is a kernel alone")
    batch = make_batch(model)
    for trainer in trainers:
        trainer.accumulate(*batch)
    kernels, plain = (trainer.gradients() for trainer in trainers)
    assert norm({key: kernels[key] - plain[key] for key in kernels}) < 5e-6 * norm(kernels)


@pytest.mark.parametrize("name", ["llama", "gemma4+shared-kv", "deepseek2+experts", "lfm2", "qwen35", "rwkv7"])
def test_the_header_is_enough_to_predict_memory(tmp_path: Path, name: str) -> None:
    path = str(files.write_model(tmp_path, name))
    parts = []
    for header_only in (True, False):
        model = Model(path, header_only=header_only)
        adapter = Adapter(model, rank=2, alpha=2.0, targets=[model.linears()[0].kind])
        parts.append(Trainer(adapter, context=64, threads=1).memory(32, 32, 2))
    predicted, real = parts
    assert predicted == real


@pytest.mark.parametrize("name", ["gpt-oss", "mimo2+experts"])
def test_sinks_are_in_the_fused_attention(tmp_path: Path, name: str) -> None:
    """Against llama.cpp's own nodes, which round activations: that moves log p by up to 1.5e-2, no sinks by 7e-2."""
    model = Model(str(files.write_model(tmp_path, name)))
    batch = make_batch(model)
    fused, plain = (
        verdict.make_trainer(model, precision=precision).evaluate(*batch).log_probs
        for precision in ("f32", "llama.cpp")
    )
    learned = batch[4] != 0
    assert np.abs(fused - plain)[learned].max() < 3e-2


def norm(arrays: dict[str, NDArray[np.float32]]) -> float:
    return float(np.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values())))


@pytest.mark.parametrize("name", [name for name in files.NAMES if name not in TRAINABLE])
def test_what_is_refused_says_why(tmp_path: Path, name: str) -> None:
    why = verdict.refusal(files.write_model(tmp_path, name))
    assert len(why) > 10
    assert not re.search("unordered_map|vector|std::", why)
    assert why == WHY_NOT.get(name), "run scripts/trainability.py --write"


def test_the_page_is_complete() -> None:
    assert verdict.page(WHY_NOT) == verdict.PAGE.read_text(), "run scripts/trainability.py --write"
    assert architectures() == WHY_NOT, "run scripts/trainability.py --write"
    assert verdict.data(WHY_NOT) == verdict.DATA.read_text(encoding="utf-8")
    assert sorted(WHY_NOT) == files.NAMES
    assert len({files.architecture_of(name) for name in TRAINABLE}) >= 61


@pytest.mark.skipif(not LLAMA_CPP.exists(), reason="needs llama.cpp's sources")
def test_every_name_of_llama_cpp_is_here() -> None:
    source = (LLAMA_CPP / "src" / "llama-arch.cpp").read_text()
    table = source[source.index("LLM_ARCH_NAMES = {") :]
    names = set(re.findall(r'\{ LLM_ARCH_\w+, +"(.*?)"', table[: table.index("};")]))
    assert names - WITHOUT_MODEL == {files.architecture_of(name) for name in files.NAMES}
