"""The native module's adapter and trainer: what repeats, what is refused, what can be interrupted."""

from __future__ import annotations

import gc
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import gguf_files
import numpy as np
import pytest
import refused_models
from numpy.typing import NDArray

from ggtune._core import Adapter, Model, Trainer
from ggtune.demo import MODEL
from ggtune.errors import GgtuneError, ModelError, NotFiniteError

Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]

LINEARS = list(gguf_files.LINEARS)
CONTEXT = 64
N_VOCAB = len(gguf_files.VOCABULARY)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A quantized llama of two layers."""
    return Model(str(gguf_files.write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", types="q4_K")))


@pytest.fixture(scope="module")
def demo() -> Model:
    return Model(str(MODEL))


@pytest.fixture
def trainer(tiny: Model) -> Trainer:
    return make_trainer(tiny)


def make_trainer(
    model: Model,
    *,
    threads: int = 1,
    recompute_layers: int = 0,
    dropout: float = 0.0,
    seed: int = 0,
    precision: str = "auto",
) -> Trainer:
    trainer = Trainer(
        gguf_files.random_adapter(model),
        context=CONTEXT,
        threads=threads,
        dropout=dropout,
        seed=seed,
        precision=precision,
    )
    trainer.recompute_layers = recompute_layers
    return trainer


def make_batch(n_sequences: int = 2, length: int = 12, n_vocab: int = N_VOCAB, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, n_vocab, (n_sequences, length + 1)).astype(np.int32)
    return (
        tokens[:, :-1].reshape(-1),
        np.tile(np.arange(length, dtype=np.int32), n_sequences),
        np.repeat(np.arange(n_sequences, dtype=np.int32), length),
        tokens[:, 1:].reshape(-1),
        np.ones(n_sequences * length, np.float32),
    )


@pytest.mark.parametrize(("precision", "n_second", "limit"), [("f32", 533, 1e-5), ("auto", 552, 1e-3)])
def test_logits_in_chunks(demo: Model, precision: str, n_second: int, limit: float) -> None:
    """1033 targets of 8192 logits take two chunks, the second of 9 rows; the two sequences alone take one each.

    Where products round, it has 28 rows: those of fewer than 16 are computed in float32 and would be rounded otherwise
    than in the sequence alone. With integer products the last bits of a gradient decide how it is rounded before the
    next.
    """
    trainer = Trainer(gguf_files.random_adapter(demo), context=600, threads=2, precision=precision)
    rng = np.random.default_rng(3)
    parts: list[Batch] = []
    for n in (500, n_second):
        tokens = rng.integers(0, demo.n_vocab, n + 1).astype(np.int32)
        rows = np.arange(n, dtype=np.int32)
        weights = rng.uniform(0.5, 2, n).astype(np.float32)  # not alike: each row has to get its own
        parts.append((tokens[:-1], rows, np.zeros_like(rows), tokens[1:], weights))
    together = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    together[2][500:] = 1
    whole = trainer.accumulate(*together)  # type: ignore[arg-type]
    gradients = trainer.gradients()
    trainer.zero_gradients()
    alone = [trainer.accumulate(*part) for part in parts]
    np.testing.assert_allclose(whole.log_probs, np.concatenate([part.log_probs for part in alone]), atol=1e-4)
    for name, expected in trainer.gradients().items():
        assert np.linalg.norm(gradients[name] - expected) <= limit * np.linalg.norm(expected), name


def test_precision(demo: Model) -> None:
    """f32 has no integer products; with them, losses and gradients are no further off than by llama.cpp's products."""
    batch = make_batch(2, 64, demo.n_vocab)

    def losses_and_gradients(precision: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        trainer = Trainer(gguf_files.random_adapter(demo), context=128, threads=2, precision=precision)
        if precision == "f32":
            assert not {"int8_product", "int16_dx"} & set(trainer.profile(*batch))
            trainer.zero_gradients()
        log_probs = trainer.accumulate(*batch).log_probs
        return log_probs, np.concatenate([g.reshape(-1) for g in trainer.gradients().values()])

    exact, rounded, llama_cpp = (losses_and_gradients(name) for name in ("f32", "auto", "llama.cpp"))
    for mine, theirs, true in zip(rounded, llama_cpp, exact, strict=True):
        assert 0 < np.linalg.norm(mine - true) < 1.2 * np.linalg.norm(theirs - true)


def same_bits(left: dict[str, NDArray[np.float32]], right: dict[str, NDArray[np.float32]]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


# --- adapters


def test_an_adapter_follows_from_its_seed(tiny: Model) -> None:
    first, again, other = (Adapter(tiny, rank=4, alpha=4.0, targets=LINEARS, seed=seed) for seed in (1, 1, 2))
    names = first.tensor_names()
    assert len(names) == 2 * gguf_files.N_LAYER * len(LINEARS)
    a_names = [name for name in names if name.endswith(".lora_a")]
    assert all(np.array_equal(first.get(name), again.get(name)) for name in names)
    assert all(not np.any(first.get(name)) for name in names if name.endswith(".lora_b"))
    assert not any(np.array_equal(first.get(name), other.get(name)) for name in a_names)
    of_one_shape = [first.get(name).tobytes() for name in a_names if first.get(name).shape == (4, gguf_files.N_EMBD)]
    assert len(set(of_one_shape)) == len(of_one_shape) > 1  # a seed of its own per tensor
    for name in a_names:
        values = first.get(name)
        assert values.std() == pytest.approx(values.shape[1] ** -0.5, rel=0.1)
        assert abs(values.mean()) < 0.1 * values.shape[1] ** -0.5


def test_a_tensor_does_not_depend_on_the_other_targets(tiny: Model) -> None:
    name = "blk.1.attn_v.weight.lora_a"
    every, one = (Adapter(tiny, rank=4, alpha=4.0, targets=targets, seed=3) for targets in (LINEARS, ["attn_v"]))
    assert np.array_equal(every.get(name), one.get(name))
    assert len(one.tensor_names()) == 2 * gguf_files.N_LAYER


def test_rank_stabilized_scale(tiny: Model) -> None:
    assert Adapter(tiny, rank=16, alpha=8.0, targets=["attn_q"], rslora=True).alpha == pytest.approx(32)
    assert Adapter(tiny, rank=16, alpha=8.0, targets=["attn_q"]).alpha == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"rank": 1000}, "rank 1000 is more than blk.0.attn_q.weight has"),
        ({"alpha": 0.0}, "alpha must be a number above 0"),
        ({"alpha": -1.0}, "alpha must be a number above 0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0"),
        ({"targets": ["output"]}, "no linear named 'output'; it has attn_k, .*ffn_up"),
        ({"targets": []}, "no linear is chosen"),
    ],
)
def test_wrong_adapters(tiny: Model, change: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"rank": 4, "alpha": 4.0, "targets": ["attn_q"]}
    with pytest.raises(GgtuneError, match=message):
        Adapter(tiny, **(settings | change))  # type: ignore[arg-type]


def test_wrong_adapter_tensors(tiny: Model) -> None:
    adapter = Adapter(tiny, rank=4, alpha=4.0, targets=["attn_q"])
    with pytest.raises(GgtuneError, match=r"no tensor blk\.0\.attn_k\.weight\.lora_a"):
        adapter.get("blk.0.attn_k.weight.lora_a")
    with pytest.raises(GgtuneError, match=r"has shape \(4, 256\)"):
        adapter.set("blk.0.attn_q.weight.lora_a", np.zeros((256, 4), np.float32))


# --- micro-batches


def change_row(key: int, row: int, value: float) -> Callable[[Batch], Batch]:
    def change(batch: Batch) -> Batch:
        arrays = [array.copy() for array in batch]
        arrays[key][row] = value
        return tuple(arrays)

    return change


TOKENS, POSITIONS, SEQUENCES, TARGETS, WEIGHTS = range(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_row(POSITIONS, 3, 7), "row 3 of a micro-batch: position 7 where 3 was expected"),
        (change_row(POSITIONS, 12, 12), "row 12 of a micro-batch: position 12 where 0 was expected"),
        (change_row(SEQUENCES, 23, 0), "row 23 of a micro-batch: sequence 0 is in two pieces"),
        (change_row(SEQUENCES, 0, 256), "row 0 of a micro-batch: sequence 256 is not in 0 to 255"),
        (change_row(SEQUENCES, 0, -1), "row 0 of a micro-batch: sequence -1 is not in 0 to 255"),
        (change_row(TOKENS, 5, N_VOCAB), f"row 5 of a micro-batch: token {N_VOCAB} is not in the vocabulary"),
        (change_row(TOKENS, 5, -1), "row 5 of a micro-batch: token -1 is not in the vocabulary"),
        (change_row(TARGETS, 6, N_VOCAB), f"row 6 of a micro-batch: target {N_VOCAB} is not in the vocabulary"),
        (change_row(WEIGHTS, 7, np.nan), "row 7 of a micro-batch: the weight is not finite"),
        (change_row(WEIGHTS, 7, np.inf), "row 7 of a micro-batch: the weight is not finite"),
        (lambda batch: tuple(array[:0] for array in batch), "at least one token"),
        (lambda batch: (*batch[:4], batch[4][:-1]), "the same length"),
        (lambda _: make_batch(1, CONTEXT + 1), "longer than the context of 64 tokens"),
    ],
)
def test_wrong_micro_batches(trainer: Trainer, change: Callable[[Batch], Batch], message: str) -> None:
    batch = make_batch()
    for call in (trainer.accumulate, trainer.evaluate):
        with pytest.raises(GgtuneError, match=message):
            call(*change(batch))
    assert trainer.n_micro_batches == 0
    assert not any(np.any(gradient) for gradient in trainer.gradients().values())
    assert np.isfinite(trainer.accumulate(*batch).loss_sum)


def test_rows_without_weight_need_no_target(trainer: Trainer) -> None:
    tokens, positions, sequences, targets, weights = make_batch()
    weights[::2] = 0
    expected = trainer.evaluate(tokens, positions, sequences, targets, weights)
    targets[::2] = -1
    result = trainer.evaluate(tokens, positions, sequences, targets, weights)
    assert result.loss_sum == expected.loss_sum
    assert (result.n_targets, result.n_tokens, result.weight_sum) == (12, 24, 12)


def test_a_micro_batch_without_targets(trainer: Trainer) -> None:
    result = trainer.accumulate(*make_batch()[:4], np.zeros(24, np.float32))
    assert (result.loss_sum, result.weight_sum, result.n_targets, result.n_tokens) == (0, 0, 0, 24)
    assert np.isnan(result.log_probs).all()
    with pytest.raises(GgtuneError, match="nothing to step on"):
        trainer.step(1e-3)


def test_gradients_follow_the_weights(tiny: Model) -> None:
    batch, ones, doubled = make_batch(), make_trainer(tiny), make_trainer(tiny)
    single = ones.accumulate(*batch)
    double = doubled.accumulate(*batch[:4], 2 * batch[4])
    assert double.loss_sum == 2 * single.loss_sum
    for name, gradient in ones.gradients().items():
        np.testing.assert_allclose(doubled.gradients()[name], 2 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context must be at least 1"),
        ({"threads": 0}, "at least 1 thread"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1"),
    ],
)
def test_wrong_trainers(tiny: Model, change: dict[str, float], message: str) -> None:
    settings: dict[str, float] = {"context": CONTEXT, "threads": 1}
    with pytest.raises(GgtuneError, match=message):
        Trainer(gguf_files.random_adapter(tiny), **(settings | change))  # type: ignore[arg-type]


def test_the_model_is_the_adapters(tiny: Model) -> None:
    """It is given once, so that it can't be another; and it lives as long as the trainer."""
    with pytest.raises(TypeError):
        Trainer(tiny, gguf_files.random_adapter(tiny), context=CONTEXT, threads=1)  # type: ignore[call-arg,arg-type]

    def made() -> Trainer:
        model = Model(str(MODEL))
        return Trainer(Adapter(model, rank=2, alpha=2.0, targets=["attn_q"]), context=CONTEXT, threads=1)

    trainer = made()
    gc.collect()
    assert np.isfinite(trainer.accumulate(*make_batch()).loss_sum)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (refused_models.write_encoder_decoder, ".*it has an encoder, only decoders can"),
        (refused_models.write_mixture, "llama.cpp can't compute .*dots1.expert_gating_func is missing"),
    ],
)
def test_models_that_cannot_be_trained(write: Callable[[Path], Path], reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    model = Model(str(path), header_only=True)
    with pytest.raises(ModelError, match=f"^{re.escape(str(path))}: {reason}"):
        Trainer(Adapter(model, rank=1, alpha=1.0, targets=["attn_q"]), context=8, threads=1)


# --- what repeats bit for bit


def test_learned_positions_limit_the_context() -> None:
    gpt2 = Model(str(Path(__file__).parents[1] / "golden" / "gpt2.gguf"))
    adapter = Adapter(gpt2, rank=1, alpha=1.0, targets=["attn_qkv"])
    Trainer(adapter, context=64, threads=1)
    with pytest.raises(GgtuneError, match="knows 64 positions: a context of 65 tokens is too long"):
        Trainer(adapter, context=65, threads=1)


def test_a_header_alone_plans_and_does_nothing_else() -> None:
    model = Model(str(MODEL), header_only=True)
    adapter = Adapter(model, rank=2, alpha=2.0, targets=["attn_q"])
    trainer = Trainer(adapter, context=CONTEXT, threads=1)
    name = adapter.tensor_names()[0]
    assert trainer.memory(8, 8)["compute"] > 0
    for call in (
        lambda: adapter.get(name),
        lambda: adapter.set(name, np.zeros((2, model.n_embd), np.float32)),
        trainer.gradients,
        trainer.moments,
        lambda: trainer.set_moments({}),
        lambda: trainer.step(1e-3),
        lambda: trainer.accumulate(*make_batch()),
    ):
        with pytest.raises(GgtuneError, match="loaded without"):
            call()


def test_threads_and_recomputation_change_no_bit(tiny: Model) -> None:
    batch = make_batch()
    first = make_trainer(tiny)
    expected = first.accumulate(*batch)
    for threads, recompute_layers in ((1, 0), (2, 0), (3, 0), (1, 1), (1, 2), (2, 2)):
        trainer = make_trainer(tiny, threads=threads, recompute_layers=recompute_layers)
        result = trainer.accumulate(*batch)
        assert result.loss_sum == expected.loss_sum
        assert np.array_equal(result.log_probs, expected.log_probs)
        assert same_bits(trainer.gradients(), first.gradients())


def test_ten_steps_are_the_same_bits_with_any_number_of_threads(demo: Model) -> None:
    """And with any number of layers computed again: both may change between an interruption and its resumption."""

    def ten_steps(threads: int, recompute_layers: int) -> list[NDArray[np.float32]]:
        trainer = make_trainer(demo, threads=threads, recompute_layers=recompute_layers, dropout=0.1)
        for step in range(10):
            trainer.accumulate(*make_batch(3, 14, demo.n_vocab, seed=step))
            trainer.step(1e-3, clip=1.0)
        return [trainer.adapter.get(name) for name in trainer.adapter.tensor_names()]

    first = ten_steps(1, 0)
    for threads, recompute_layers in ((2, 0), (3, 0), (2, 2), (2, demo.n_layer)):
        assert all(map(np.array_equal, ten_steps(threads, recompute_layers), first))


def test_dropout_follows_from_seed_and_counter(tiny: Model) -> None:
    batch = make_batch()

    def gradients(seed: int, n_micro_batches: int, *, recompute_layers: int = 0) -> dict[str, NDArray[np.float32]]:
        trainer = make_trainer(tiny, dropout=0.5, seed=seed, recompute_layers=recompute_layers)
        trainer.n_micro_batches = n_micro_batches
        trainer.accumulate(*batch)
        assert trainer.n_micro_batches == n_micro_batches + 1
        return trainer.gradients()

    first = gradients(1, 5)
    assert same_bits(gradients(1, 5), first)
    assert same_bits(gradients(1, 5, recompute_layers=2), first)
    assert not same_bits(gradients(1, 6), first)
    assert not same_bits(gradients(2, 5), first)


def test_dropout_is_of_training_only(tiny: Model) -> None:
    batch = make_batch()
    plain, dropping = make_trainer(tiny), make_trainer(tiny, dropout=0.5)
    expected = plain.evaluate(*batch).loss_sum
    losses = [dropping.accumulate(*batch).loss_sum for _ in range(3)]
    assert dropping.evaluate(*batch).loss_sum == expected
    assert dropping.n_micro_batches == 3
    assert len({expected, *losses}) == 4


# --- steps


def test_a_step_needs_gradients(trainer: Trainer) -> None:
    with pytest.raises(GgtuneError, match="nothing to step on"):
        trainer.step(1e-3)
    trainer.accumulate(*make_batch())
    trainer.step(1e-3)
    assert trainer.n_steps == 1
    with pytest.raises(GgtuneError, match="nothing to step on"):
        trainer.step(1e-3)
    trainer.accumulate(*make_batch())
    trainer.zero_gradients()
    with pytest.raises(GgtuneError, match="nothing to step on"):
        trainer.step(1e-3)
    assert trainer.n_steps == 1


def test_weights_of_both_signs(tiny: Model) -> None:
    """As a preference loss has them: what one run pushes up and another down, in one step."""
    batch = make_batch()
    signs = np.where(batch[2] == 0, 0.75, -0.5).astype(np.float32)
    both, up, down, apart = (make_trainer(tiny, precision="f32") for _ in range(4))
    result = both.accumulate(*batch[:4], signs)
    assert (result.weight_sum, result.n_targets) == (3.0, 24)
    up.accumulate(*batch[:4], np.where(signs > 0, signs, 0))
    down.accumulate(*batch[:4], np.where(signs < 0, -signs, 0))
    expected = {name: gradient - down.gradients()[name] for name, gradient in up.gradients().items()}
    for name, gradient in both.gradients().items():
        assert np.linalg.norm(gradient - expected[name]) <= 1e-5 * np.linalg.norm(expected[name]), name
    norm = both.step(1e-2, divisor=2.0)
    total = np.sqrt(sum(np.sum(each.astype(np.float64) ** 2) for each in expected.values()))
    assert norm == pytest.approx(total / 2.0, rel=1e-5)
    apart.accumulate(*batch[:4], np.where(signs > 0, signs, 0))  # and in two micro-batches
    apart.accumulate(*batch[:4], np.where(signs < 0, signs, 0))
    assert apart.step(1e-2, divisor=2.0) == pytest.approx(norm, rel=1e-5)
    before, after = (
        sum(both_signs * np.nan_to_num(values))
        for both_signs, values in ((signs, result.log_probs), (signs, both.evaluate(*batch).log_probs))
    )
    assert after > before


def test_the_divisor_of_a_step(tiny: Model) -> None:
    """By default the summed weight; without one, weights that cancel out are refused and kept."""
    batch = make_batch()
    given, default, halved = (make_trainer(tiny) for _ in range(3))
    for trainer in (given, default, halved):
        trainer.accumulate(*batch)
    assert given.step(1e-3, divisor=24.0) == default.step(1e-3) == halved.step(1e-3, divisor=48.0) * 2
    for name in given.adapter.tensor_names():
        assert np.array_equal(given.adapter.get(name), default.adapter.get(name))

    trainer = make_trainer(tiny)
    signs = np.where(batch[2] == 0, 1, -1).astype(np.float32)
    trainer.accumulate(*batch[:4], signs)
    with pytest.raises(GgtuneError, match=r"weights of the accumulated targets sum to 0\.0*, .* give a divisor"):
        trainer.step(1e-3)
    for divisor in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(GgtuneError, match="divisor of a step must be a number above 0"):
            trainer.step(1e-3, divisor=divisor)
    assert trainer.n_steps == 0
    assert trainer.step(1e-3, divisor=1.0) > 0
    with pytest.raises(GgtuneError, match="nothing to step on"):
        trainer.step(1e-3, divisor=1.0)


def test_a_gradient_that_is_not_finite_changes_nothing(tiny: Model) -> None:
    trainer = make_trainer(tiny)
    name = trainer.adapter.tensor_names()[0]
    values = trainer.adapter.get(name)
    trainer.adapter.set(name, np.full_like(values, np.nan))
    before = {each: trainer.adapter.get(each) for each in trainer.adapter.tensor_names()}
    trainer.accumulate(*make_batch())
    with pytest.raises(NotFiniteError):
        trainer.step(1e-3)
    assert trainer.n_steps == 0
    for each, kept in before.items():
        np.testing.assert_array_equal(trainer.adapter.get(each), kept)
    trainer.zero_gradients()
    trainer.adapter.set(name, values)
    trainer.accumulate(*make_batch())
    assert np.isfinite(trainer.step(1e-3))


def test_clipping_scales_the_gradient(tiny: Model) -> None:
    """The first moment of the first step is (1 - beta1) times the gradient that was used."""
    free, clipped, loose = (make_trainer(tiny) for _ in range(3))
    for trainer in (free, clipped, loose):
        trainer.accumulate(*make_batch())
    gradients = free.gradients()
    norm = free.step(1e-3)
    total = np.sqrt(sum(np.sum(each.astype(np.float64) ** 2) for each in gradients.values()))
    assert norm == pytest.approx(total / 24, rel=1e-6)
    assert clipped.step(1e-3, clip=norm / 4) == norm  # that before clipping
    assert loose.step(1e-3, clip=2 * norm) == norm
    for name, (first, second) in free.moments().items():
        np.testing.assert_allclose(clipped.moments()[name][0], first / 4, rtol=1e-4, atol=1e-12)
        np.testing.assert_allclose(clipped.moments()[name][1], second / 16, rtol=1e-4, atol=1e-20)
        assert np.array_equal(loose.moments()[name][0], first)


def test_lora_plus_moves_b_faster(tiny: Model) -> None:
    """By the ratio, weight decay included; A as without, bit for bit. A ratio of 1 changes nothing."""
    moves: dict[float | None, dict[str, NDArray[np.float32]]] = {}
    for ratio in (None, 1.0, 4.0):
        trainer = make_trainer(tiny)
        before = {name: trainer.adapter.get(name) for name in trainer.adapter.tensor_names()}
        trainer.accumulate(*make_batch())
        options = {} if ratio is None else {"lora_plus_ratio": ratio}
        trainer.step(1e-3, weight_decay=0.1, **options)
        moves[ratio] = {name: trainer.adapter.get(name) - values for name, values in before.items()}
    assert same_bits(moves[None], moves[1.0])
    for name, move in moves[4.0].items():
        if name.endswith(".lora_a"):
            assert np.array_equal(move, moves[1.0][name])
        else:
            np.testing.assert_allclose(move, 4 * moves[1.0][name], rtol=1e-3, atol=1e-6)
            assert np.abs(move).max() > 1e-3


def test_moments_carry_over(tiny: Model) -> None:
    """A second trainer with adapter, moments and counters of the first takes the same next step."""
    trainer, other = make_trainer(tiny), make_trainer(tiny)
    for _ in range(3):
        trainer.accumulate(*make_batch())
        trainer.step(1e-2, weight_decay=0.1, clip=1.0)
    for name in trainer.adapter.tensor_names():
        other.adapter.set(name, trainer.adapter.get(name))
    other.set_moments(trainer.moments())
    other.n_steps = trainer.n_steps
    for each in (trainer, other):
        each.accumulate(*make_batch(seed=1))
        each.step(1e-2, weight_decay=0.1, clip=1.0)
    for name in trainer.adapter.tensor_names():
        assert np.array_equal(trainer.adapter.get(name), other.adapter.get(name))


def test_wrong_moments_change_nothing(tiny: Model) -> None:
    trainer = make_trainer(tiny)
    trainer.accumulate(*make_batch())
    trainer.step(1e-3)
    before = trainer.moments()
    name = trainer.adapter.tensor_names()[-1]
    twice = {each: (2 * first, 2 * second) for each, (first, second) in before.items()}
    with pytest.raises(GgtuneError, match=f"moments of {name} are missing"):
        trainer.set_moments({each: pair for each, pair in twice.items() if each != name})
    with pytest.raises(GgtuneError, match="has shape"):
        trainer.set_moments(twice | {name: (twice[name][0], twice[name][1].T)})
    assert all(np.array_equal(first, before[each][0]) for each, (first, _) in trainer.moments().items())


def test_training_lowers_the_loss(tiny: Model) -> None:
    trainer, batch = make_trainer(tiny), make_batch()
    losses = []
    for _ in range(12):
        losses.append(trainer.accumulate(*batch).loss_sum)
        trainer.step(1e-2, clip=1.0)
    assert losses[-1] < 0.5 * losses[0]


# --- memory


def test_memory_grows_with_the_micro_batch(demo: Model) -> None:
    keeping, recomputing = make_trainer(demo), make_trainer(demo, recompute_layers=demo.n_layer)
    sizes = [keeping.memory(n, n) for n in (8, 32, 64)]
    for size in sizes:
        assert set(size) == {"weights", "adapter", "optimizer", "compute"}
        assert all(n_bytes > 0 for n_bytes in size.values())
        assert size["adapter"] == 4 * keeping.adapter.n_params
        assert size["optimizer"] == 3 * size["adapter"]
    assert sizes[0]["compute"] < sizes[1]["compute"] < sizes[2]["compute"]
    assert keeping.memory(64, 1)["compute"] < sizes[2]["compute"]
    assert recomputing.memory(64, 8)["compute"] < keeping.memory(64, 8)["compute"]
    with pytest.raises(GgtuneError, match="no more targets than tokens"):
        keeping.memory(8, 9)


# --- signals and other threads


def long_batch(model: Model) -> Batch:
    """A micro-batch that takes several seconds."""
    return make_batch(128, CONTEXT, model.n_vocab)


def test_a_signal_ends_a_micro_batch(demo: Model) -> None:
    trainer, short = make_trainer(demo), make_batch(1, 8, demo.n_vocab)
    expected = trainer.accumulate(*short).loss_sum
    gradients = trainer.gradients()
    trainer.zero_gradients()
    raised: list[float] = []

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raised.append(time.monotonic())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        sent = time.monotonic() + 0.3
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            trainer.accumulate(*long_batch(demo))
        ended = time.monotonic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert raised
    assert ended - sent < 1
    assert trainer.n_micro_batches == 1
    trainer.zero_gradients()
    assert trainer.accumulate(*short).loss_sum == expected
    assert same_bits(trainer.gradients(), gradients)


def test_other_python_threads_run_meanwhile(demo: Model) -> None:
    trainer = make_trainer(demo)
    done, counts = threading.Event(), [0]

    def count() -> None:
        while not done.is_set():
            counts[0] += 1
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        start, before = time.monotonic(), counts[0]
        trainer.accumulate(*make_batch(8, CONTEXT, demo.n_vocab))
        elapsed = time.monotonic() - start
        progress = counts[0] - before
    finally:
        done.set()
        thread.join()
    assert progress > 20 * elapsed  # some hundred a second; none with the lock held
