"""The adapter's file and the merged model in plain llama.cpp, against the engine with the live adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import gguf_files
import numpy as np
import pytest
from numpy.typing import NDArray

from ggtune import _core
from ggtune._core import Adapter, Model, Trainer
from ggtune.demo import MODEL

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))

# ggml looks GELU up in a table of half-precision values, the engine computes it: up to 5.2e-3 (gemma3)
GELU_FAMILIES = {"falcon", "gemma", "gemma2", "gemma3", "gpt2", "starcoder2"}

TEXTS = [
    '<s>[INST] What is the meaning of the noun "argon"? [/INST] a gas that does not burn </s>',
    "<s>[INST] What kind of thing is a beaker? [/INST] A beaker is a kind of vessel. </s>",
    "<s>[INST] Which acid do ants spray? [/INST] They spray formic acid. </s>",
    "<s>[INST] What does a catalyst do? [/INST] It makes a reaction faster and is not used up. </s>",
]


def log_probs(
    model: Model, adapter: Adapter, texts: Sequence[NDArray[np.int32]], precision: str = "auto"
) -> NDArray[np.float32]:
    """log p of every token but each text's first, by the engine."""
    trainer = Trainer(adapter, context=max(map(len, texts)), threads=1, precision=precision)
    results = []
    for tokens in texts:
        n = len(tokens) - 1
        rows = np.arange(n, dtype=np.int32)
        results.append(trainer.evaluate(tokens[:-1], rows, np.zeros_like(rows), tokens[1:], np.ones(n, np.float32)))
    return np.concatenate([result.log_probs for result in results])


def decoded(model: Model, texts: Sequence[NDArray[np.int32]], adapter_path: Path | None = None) -> NDArray[np.float32]:
    """The same by ``llama_decode``."""
    path = str(adapter_path) if adapter_path else None
    return np.concatenate([_core.decode_log_probs(model, tokens, adapter_path=path) for tokens in texts])


def no_adapter(model: Model) -> Adapter:
    """An adapter without effect: its B is 0."""
    return Adapter(model, rank=1, alpha=1.0, targets=[model.linears()[0].kind])


def largest(difference: NDArray[np.float32]) -> float:
    return float(np.abs(difference).max())


@pytest.mark.parametrize("name", NAMES)
def test_float_base(name: str, tmp_path: Path) -> None:
    base, lora = GOLDEN / f"{name}.gguf", GOLDEN / f"{name}-lora.gguf"
    with np.load(GOLDEN / f"{name}.npz") as numbers:
        tokens, sequences = numbers["tokens"], numbers["sequences"]
        rank, alpha = int(numbers["rank"]), float(numbers["alpha"])
    texts = [tokens[sequences == sequence] for sequence in np.unique(sequences)]
    model = Model(str(base))
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(lora).tensors}
    adapter = Adapter(model, rank=rank, alpha=alpha, targets=sorted({tensor.split(".")[2] for tensor in tensors}))
    for tensor, values in tensors.items():
        adapter.set(tensor, values)
    _core.merge(str(base), [(str(lora), 1.0)], str(tmp_path / "merged.gguf"))
    merged = Model(str(tmp_path / "merged.gguf"))

    live = log_probs(model, adapter, texts)
    assert largest(log_probs(merged, no_adapter(merged), texts) - live) < 1e-4
    as_llama_cpp = log_probs(model, adapter, texts, "llama.cpp")
    assert largest(decoded(model, texts, lora) - as_llama_cpp) < 1e-4
    assert largest(decoded(merged, texts) - log_probs(merged, no_adapter(merged), texts, "llama.cpp")) < 1e-4
    assert largest(as_llama_cpp - live) < (1e-2 if name in GELU_FAMILIES else 1e-4)
    assert largest(decoded(model, texts) - live) > 1  # the adapter matters


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Adapter, Path]:
    """The demo model (Q5_K and Q6_K), a random adapter, and the file of the same adapter."""
    model = Model(str(MODEL))
    adapter = Adapter(model, rank=4, alpha=4.0, targets=sorted({linear.kind for linear in model.linears()}))
    rng = np.random.default_rng(0)
    pairs = {}
    for linear in model.linears():
        b = rng.normal(0, 0.1, (linear.n_out, 4)).astype(np.float32)
        adapter.set(f"{linear.name}.lora_b", b)
        pairs[linear.name] = (adapter.get(f"{linear.name}.lora_a"), b)
    path = tmp_path_factory.mktemp("adapter") / "adapter.gguf"
    return model, adapter, gguf_files.write_adapter(path, pairs, alpha=4.0)


def test_quantized_base(adapted: tuple[Model, Adapter, Path], tmp_path: Path) -> None:
    """With llama.cpp's operations token by token; with the engine's own in the mean, or closer to float32 than it.

    ggml rounds the activations of a quantized product to 8 bits, and one that sits at the edge of a step falls on
    either side after any other change of the last bit. B times 1 + 1e-6 alone moves single tokens by 0.07 and the mean
    of the absolute differences by 1.7e-3. The engine rounds them to 8 bits, too, or on a matrix unit to bf16, which is
    several times closer to float32: how far it is from llama.cpp is then llama.cpp's rounding.
    """
    model, adapter, path = adapted
    texts = [model.tokenize(text) for text in TEXTS]
    live = check_quantized(model, adapter, texts, path)
    assert np.abs(decoded(model, texts) - live).mean() > 0.05  # the adapter matters

    _core.merge(str(MODEL), [(str(path), 1.0)], str(tmp_path / "merged.gguf"))
    merged = Model(str(tmp_path / "merged.gguf"))
    check_quantized(merged, no_adapter(merged), texts)


def check_quantized(
    model: Model, adapter: Adapter, texts: Sequence[NDArray[np.int32]], adapter_path: Path | None = None
) -> NDArray[np.float32]:
    """Compare what each precision computes; that of ``auto`` is returned."""
    plain = decoded(model, texts, adapter_path)
    exact, live, as_llama_cpp = (log_probs(model, adapter, texts, name) for name in ("f32", "auto", "llama.cpp"))
    assert largest(plain - as_llama_cpp) < 1e-2
    rounded_alike = np.abs(plain - live).mean() < 1e-2
    assert rounded_alike or np.linalg.norm(live - exact) < 0.3 * np.linalg.norm(plain - exact)
    assert abs(live.mean() - exact.mean()) < 1e-2
    assert abs(plain.mean() - live.mean()) < 1e-2
    return live


@pytest.mark.parametrize("ggml_type", ["Q8_0", "Q4_K", "Q5_K"])
def test_merging_keeps_what_was_learned(ggml_type: str, adapted: tuple[Model, Adapter, Path], tmp_path: Path) -> None:
    """What 10 steps gained on a text is still there after the merge, in the base's own types."""
    base, output = tmp_path / "base.gguf", tmp_path / "merged.gguf"
    lora = tmp_path / "adapter.gguf"
    _core.merge(str(MODEL), [(str(adapted[2]), 0.0)], str(base), outtype=ggml_type)
    model = Model(str(base))
    types = {linear.name: linear.type for linear in model.linears()}
    assert {name.upper() for name in types.values()} == {ggml_type.upper()}

    adapter = Adapter(model, rank=8, alpha=8.0, targets=sorted({linear.kind for linear in model.linears()}))
    trainer = Trainer(adapter, context=64, threads=1)
    samples = [model.tokenize(text) for text in TEXTS]
    lengths = [len(tokens) - 1 for tokens in samples]
    batch = (
        np.concatenate([tokens[:-1] for tokens in samples]),
        np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        np.repeat(np.arange(len(samples), dtype=np.int32), lengths),
        np.concatenate([tokens[1:] for tokens in samples]),
        np.ones(sum(lengths), np.float32),
    )
    for _ in range(10):
        trainer.accumulate(*batch)
        trainer.step(5e-3, clip=1.0)
    names = [name for name in types if f"{name}.lora_a" in adapter.tensor_names()]
    pairs = {name: (adapter.get(f"{name}.lora_a"), adapter.get(f"{name}.lora_b")) for name in names}
    gguf_files.write_adapter(lora, pairs, alpha=8.0)
    _core.merge(str(base), [(str(lora), 1.0)], str(output))
    merged = Model(str(output))
    assert {linear.name: linear.type for linear in merged.linears()} == types

    before, live, after = (
        -log_probs(each, lora, samples).mean()
        for each, lora in ((model, no_adapter(model)), (model, adapter), (merged, no_adapter(merged)))
    )
    assert before - live > 1
    share = (before - after) / (before - live)
    print(f"{ggml_type}: {100 * share:.2f} % of the gain kept ({before:.4f}, live {live:.4f}, merged {after:.4f})")
    assert share > (0.99 if ggml_type == "Q8_0" else 0.9)
