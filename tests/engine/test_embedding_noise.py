"""NEFTune: noise on the embeddings, of the size that the paper gives it, in training alone."""

from typing import Any

import numpy as np
import pytest

from ggtune import _core
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError

TOKENS = np.arange(40, 72, dtype=np.int32)


@pytest.fixture(scope="module")
def model() -> _core.Model:
    return _core.Model(str(MODEL))


def batch(lengths: list[int]) -> tuple[Any, ...]:
    tokens = np.concatenate([TOKENS[:n] for n in lengths])
    positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
    sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return tokens, positions, sequences, np.roll(tokens, -1), np.ones(len(tokens), np.float32)


def run(model: _core.Model, alpha: float, *, micro_batches: int = 1, recompute: int = 0, **options: Any) -> Any:
    adapter = _core.Adapter(model, rank=2, alpha=2.0, targets=["attn_q"], seed=1)
    trainer = _core.Trainer(
        adapter, context=64, threads=2, precision="f32", neftune_alpha=alpha, **{"seed": 3, **options}
    )
    trainer.recompute_layers = recompute
    losses = [trainer.accumulate(*batch([20, 12])).loss_sum for _ in range(micro_batches)]
    name = next(name for name in adapter.tensor_names() if name.endswith("lora_b"))
    return losses, trainer.gradients()[name], trainer.evaluate(*batch([20, 12])).loss_sum


def test_noise_is_in_training_alone_and_follows_from_the_seed(model: _core.Model) -> None:
    (plain,), plain_gradient, held_out = run(model, 0.0)
    losses, _, with_noise = run(model, 5.0, micro_batches=2)
    assert with_noise == held_out
    assert losses[0] != losses[1] != plain  # another one for each micro-batch
    assert run(model, 5.0, micro_batches=2)[0] == losses
    assert run(model, 5.0, seed=4)[0][0] != losses[0]
    once = run(model, 5.0)
    assert np.abs(once[1] - plain_gradient).max() > 1e-3 * np.abs(plain_gradient).max()
    again = run(model, 5.0, recompute=99)
    assert again[0] == once[0]
    assert (again[1] == once[1]).all()


def test_what_the_noise_does_grows_with_alpha(model: _core.Model) -> None:
    """Small noise moves the loss in proportion to alpha (its first order), and not at all without."""
    plain = run(model, 0.0)[0][0]
    moves = [run(model, alpha)[0][0] - plain for alpha in (0.01, 0.02)]
    assert moves[0] != 0
    assert moves[1] / moves[0] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("alpha", [-1.0, float("nan"), float("inf")])
def test_bad_alpha(model: _core.Model, alpha: float) -> None:
    with pytest.raises(GgtuneError, match="neftune_alpha"):
        run(model, alpha)
