"""Log-probabilities of continuations, many at once, against one text after another."""

from pathlib import Path

import numpy as np
import pytest

from ggtune import _core
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError
from ggtune.evaluate import log_probs
from ggtune.evaluate.log_probs import Likelihood, Text

GOLDEN = Path(__file__).parents[1] / "golden"


def texts_of(model: _core.Model) -> list[Text]:
    """Prefixes of several lengths, with one to four ends."""
    rng = np.random.default_rng(0)
    found: list[Text] = []
    for n_prefix in (1, 7, 3, 12, 2):
        ends = [rng.integers(3, model.n_vocab, n).tolist() for n in rng.integers(1, 9, rng.integers(1, 5))]
        found.append((rng.integers(3, model.n_vocab, n_prefix).tolist(), ends))
    return found


def one_by_one(model: _core.Model, text: Text, adapter: str | None = None) -> list[np.ndarray]:
    prefix, ends = text
    return [
        _core.decode_log_probs(model, np.array([*prefix, *end], np.int32), adapter_path=adapter)[len(prefix) - 1 :]
        for end in ends
    ]


@pytest.mark.parametrize("name", ["llama", "gemma3", "sparse/gpt-oss", "sparse/mamba2", "sparse/lfm2"])
def test_as_each_text_alone(name: str) -> None:
    """Of caches with a window and of recurrent states too."""
    tolerance = 2e-3 if name == "gemma3" else 2e-5  # ggml looks its GELU up in a table of half precision
    model = _core.Model(str(GOLDEN / f"{name}.gguf"))
    texts = texts_of(model)
    found = list(Likelihood(model, threads=1).each(texts))
    for text, ends in zip(texts, found, strict=True):
        for log_prob, expected in zip(ends, one_by_one(model, text), strict=True):
            np.testing.assert_allclose(log_prob, expected, atol=tolerance)


def test_with_an_adapter_and_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_probs, "_TOKENS", 24)
    monkeypatch.setattr(log_probs, "_ENDS", 3)
    model, adapter = _core.Model(str(GOLDEN / "llama.gguf")), str(GOLDEN / "llama-lora.gguf")
    texts = texts_of(model)
    for scale in (1.0, 0.0):
        likelihood = Likelihood(model, [(adapter, scale)], threads=1)
        for text, ends in zip(texts, likelihood.each(texts), strict=True):
            for log_prob, expected in zip(ends, one_by_one(model, text, adapter if scale else None), strict=True):
                np.testing.assert_allclose(log_prob, expected, atol=2e-5)


def test_a_long_text_is_computed_in_parts() -> None:
    """More rows than llama.cpp keeps logits of at once."""
    model = _core.Model(str(MODEL))
    tokens = np.random.default_rng(1).integers(3, model.n_vocab, 700).tolist()
    found = Likelihood(model, threads=1).sums([(tokens[:1], [tokens[1:]])])
    expected = _core.decode_log_probs(model, np.array(tokens, np.int32)).sum(dtype=np.float64)
    assert found[0] == pytest.approx(expected, rel=1e-5)


def test_what_can_not_be_scored() -> None:
    model = _core.Model(str(GOLDEN / "llama.gguf"))
    likelihood = Likelihood(model, threads=1)
    for text in (([], [[5]]), ([5], [[5], []])):
        with pytest.raises(GgtuneError, match="without a token"):
            list(likelihood.each([text]))
    with pytest.raises(GgtuneError):
        list(likelihood.each([([5], [[model.n_vocab]])]))
    scorer = _core.ContinuationScorer(model, n_tokens=4, n_sequences=2)
    for texts in ([([3, 4, 5], [[6, 7, 8]])], [([3], [[4], [5], [6]])]):
        with pytest.raises(GgtuneError, match="don't fit"):
            scorer.log_probs(texts)
    with pytest.raises(GgtuneError, match="at least one token"):
        scorer.log_probs([([], [[3]])])
    with pytest.raises(GgtuneError, match="empty"):
        scorer.log_probs([([3], [[]])])
