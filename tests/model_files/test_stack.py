"""Several adapters as one file: the sum, to the last bits, through llama.cpp and through ggtune's own engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ggtune import _core
from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError, ModelError
from ggtune.generate import answer_pieces
from ggtune.gguf.adapter_file import AdapterFile, load_adapter, read_adapter, write_adapter
from ggtune.gguf.stack import stack_adapters, stacked

GOLDEN = Path(__file__).parents[1] / "golden"
BASE = GOLDEN / "llama.gguf"  # F32
TRAINED = GOLDEN / "llama-lora.gguf"  # rank 4, alpha 8, every linear
TOKENS = np.array([1, 17, 200, 45, 45, 99, 280, 3, 150, 61], dtype=np.int32)


def random_adapter(path: Path, rank: int, alpha: float, *, only: str = "", seed: int = 1) -> Path:
    """An adapter for the base; ``only`` leaves out the tensors that have not this in their name."""
    random = np.random.default_rng(seed)
    tensors = {}
    for linear in _core.Model(str(BASE)).linears():
        if only in linear.name:
            tensors[f"{linear.name}.lora_a"] = random.normal(0, 0.2, (rank, linear.n_in)).astype(np.float32)
            tensors[f"{linear.name}.lora_b"] = random.normal(0, 0.3, (linear.n_out, rank)).astype(np.float32)
    write_adapter(path, AdapterFile("llama", alpha, tensors, {"template": "llama2", "base_fingerprint": "f"}))
    return path


def log_probs(model: Path, adapter: Path | None = None) -> np.ndarray:
    path = None if adapter is None else str(adapter)
    return _core.decode_log_probs(_core.Model(str(model)), TOKENS, adapter_path=path)


@pytest.mark.parametrize("only", ["", "ffn", "blk.1.attn"])
def test_the_stack_is_the_sum(tmp_path: Path, only: str) -> None:
    adapters = [
        (random_adapter(tmp_path / "b.gguf", 3, 6.0, only=only), 0.7),
        (TRAINED, 1.0),
        (random_adapter(tmp_path / "c.gguf", 2, 0.0, seed=2), -0.5),  # no alpha: no division by the rank
    ]
    merged = tmp_path / "merged.gguf"
    _core.merge(str(BASE), [(str(path), scale) for path, scale in adapters], str(merged))
    content = stack_adapters(adapters, tmp_path / "stack.gguf")
    expected = log_probs(merged)
    assert np.abs(log_probs(BASE, tmp_path / "stack.gguf") - expected).max() < 1e-4
    for without in range(len(adapters)):
        stack_adapters(adapters[:without] + adapters[without + 1 :], tmp_path / "less.gguf")
        assert np.abs(log_probs(BASE, tmp_path / "less.gguf") - expected).max() > 1e-2  # each one counts
    ranks = {a.shape[0] for name, a in content.tensors.items() if name.endswith(".lora_a")}
    assert ranks == ({9} if not only else {6, 9})
    notes = {
        "template": "llama2",
        "base_fingerprint": "f",
        "stacked": "b.gguf * 0.7 + llama-lora.gguf * 1 + c.gguf * -0.5",
    }
    assert dict(read_adapter(tmp_path / "stack.gguf").notes) == notes


def test_generation_with_the_stack_is_that_of_the_merged_model(tmp_path: Path) -> None:
    adapters = [(TRAINED, 1.0), (random_adapter(tmp_path / "b.gguf", 3, 6.0), 0.5)]
    merged = tmp_path / "merged.gguf"
    _core.merge(str(BASE), [(str(path), scale) for path, scale in adapters], str(merged))
    stack_adapters(adapters, tmp_path / "stack.gguf")
    base = _core.Model(str(BASE))

    def answer(model: _core.Model, adapter: _core.Adapter | None = None) -> str:
        return "".join(answer_pieces(model, TEMPLATES["plain"], "Why?", adapter=adapter, max_tokens=24))

    live = answer(base, load_adapter(tmp_path / "stack.gguf", base))
    assert live == answer(_core.Model(str(merged)))
    assert live != answer(base)


def test_one_adapter_keeps_its_values() -> None:
    content = read_adapter(TRAINED)
    alone = stacked([("a", content, 1.0)])
    assert alone.alpha == 4.0
    for name, values in content.tensors.items():
        factor = 2.0 if name.endswith(".lora_b") else 1.0
        np.testing.assert_array_equal(alone.tensors[name], factor * values)


def test_embedding_pairs_lie_flipped() -> None:
    random = np.random.default_rng(0)
    contents = []
    expected = np.zeros((10, 6))  # (n_vocab, n_embd)
    for rank, scale in ((2, 0.5), (3, 2.0)):
        a, b = random.normal(size=(10, rank)), random.normal(size=(6, rank))
        expected += scale * 4.0 / rank * a @ b.T
        tensors = {"token_embd.weight.lora_a": a, "token_embd.weight.lora_b": b}
        contents.append(("x", AdapterFile("llama", 4.0, {k: v.astype(np.float32) for k, v in tensors.items()}), scale))
    total = stacked(contents)
    a, b = (total.tensors[f"token_embd.weight.lora_{side}"] for side in "ab")
    assert (a.shape, b.shape, total.alpha) == ((10, 5), (6, 5), 5.0)
    np.testing.assert_allclose(a @ b.T, expected, rtol=1e-5, atol=1e-5)


def test_adapters_that_do_not_go_together(tmp_path: Path) -> None:
    content = read_adapter(TRAINED)
    name = next(iter(content.tensors)).rpartition(".")[0]
    cut = {**content.tensors, f"{name}.lora_a": content.tensors[f"{name}.lora_a"][:, 1:]}
    for other, message in [
        (replace(content, architecture="gemma"), "for a gemma model"),
        (replace(content, tensors=cut), f"{name} is .* adapters of different models"),
    ]:
        with pytest.raises(ModelError, match=message):
            stacked([("a", content, 1.0), ("b", other, 1.0)])
    one, other = (replace(content, notes={"base_fingerprint": text}) for text in "xy")
    with pytest.raises(ModelError, match="trained on different models"):
        stacked([("a", one, 1.0), ("b", other, 1.0)])
    assert stacked([("a", one, 1.0), ("b", other, 1.0)], force=True).alpha == 8
    with pytest.raises(GgtuneError, match="finite number, not nan"):
        stacked([("a", content, float("nan"))])
    with pytest.raises(GgtuneError, match="no adapter"):
        stacked([])
    with pytest.raises(GgtuneError, match="itself"):
        stack_adapters([(TRAINED, 1.0)], TRAINED)
    with pytest.raises(ModelError, match="not a LoRA adapter"):
        stack_adapters([(BASE, 1.0)], tmp_path / "out.gguf")
    assert not list(tmp_path.iterdir())
