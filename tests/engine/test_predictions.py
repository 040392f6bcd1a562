"""The most probable tokens that an evaluation finds, against ``llama_decode``'s logits, and against each other."""

from pathlib import Path

import numpy as np
import pytest

from ggtune import _core
from ggtune.demo import DATA, MODEL

GOLDEN = Path(__file__).parents[1] / "golden"


def trainer_of(model: _core.Model, context: int, **options: object) -> _core.Trainer:
    adapter = _core.Adapter(model, rank=1, alpha=1.0, targets=[model.linears()[0].kind])
    return _core.Trainer(adapter, context=context, threads=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("ops", ["cpu", "ggml"])
def test_predictions_are_the_most_probable_tokens(ops: str) -> None:
    """More rows than the head computes at once, some of them without a target, in several sequences."""
    model = _core.Model(str(MODEL))
    n = 8 * ((8 << 20) // model.n_vocab // 8) + 400
    text = DATA.read_text(encoding="utf-8")
    tokens = np.resize(model.tokenize(text), n + 8).reshape(8, -1).astype(np.int32)
    n_each = tokens.shape[1] - 1
    given, targets = tokens[:, :-1].ravel(), tokens[:, 1:].ravel()
    positions = np.tile(np.arange(n_each, dtype=np.int32), 8)
    sequences = np.repeat(np.arange(8, dtype=np.int32), n_each)
    weights = np.ones(8 * n_each, np.float32)
    weights[::7] = 0
    trainer = trainer_of(model, n_each, ops=ops)
    found = trainer.evaluate(given, positions, sequences, targets, weights, predictions=True)
    assert found.predictions is not None
    plain = trainer.evaluate(given, positions, sequences, targets, weights)
    assert plain.predictions is None
    assert plain.loss_sum == found.loss_sum
    counted = weights > 0
    assert (found.predictions[~counted] == -1).all()
    assert (found.predictions[counted] >= 0).all()
    likeliest = trainer.evaluate(given, positions, sequences, np.maximum(found.predictions, 0), weights)
    assert (likeliest.log_probs[counted] >= found.log_probs[counted]).all()
    right = found.predictions == targets
    assert (likeliest.log_probs[right] == found.log_probs[right]).all()
    assert 0.03 < right[counted].mean() < 0.9
    scorer = _core.Scorer(model, n_tokens=len(given), n_sequences=8)
    logits = scorer.logits(given, sequences, counted)
    assert np.mean(logits.argmax(axis=1) == found.predictions[counted]) > 0.97


def test_predictions_of_a_padded_batch_and_of_no_targets() -> None:
    model = _core.Model(str(GOLDEN / "llama.gguf"))
    tokens = (np.arange(12) * 7 % model.n_vocab).astype(np.int32)
    rows = np.arange(11, dtype=np.int32)
    arrays = tokens[:-1], rows, np.zeros_like(rows), tokens[1:], np.ones(11, np.float32)
    plain = trainer_of(model, 16, precision="f32").evaluate(*arrays, predictions=True)
    padded = trainer_of(model, 16, precision="llama.cpp").evaluate(*arrays, predictions=True)
    assert plain.predictions is not None
    assert padded.predictions is not None
    assert plain.predictions.tolist() == padded.predictions.tolist()
    nothing = trainer_of(model, 16).evaluate(*arrays[:4], np.zeros(11, np.float32), predictions=True)
    assert nothing.n_targets == 0
    assert nothing.predictions is not None
    assert (nothing.predictions == -1).all()
