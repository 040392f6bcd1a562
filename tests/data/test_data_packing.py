import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggtune.data.packing import efficiency, pack
from ggtune.data.samples import Sample, make_sample
from ggtune.data.split import epoch_order, hold_out
from ggtune.errors import DataError, GgtuneError
from ggtune.setting_texts import Holdout


def sample(n_rows: int, row: int = 2) -> Sample:
    rng = np.random.default_rng([n_rows, row])
    tokens = rng.integers(3, 100, n_rows + 1).tolist()
    return make_sample(tokens[: n_rows // 2], tokens[n_rows // 2 :], "answer", row)


def test_make_sample_weights() -> None:
    answer = make_sample([1, 5, 6], [7, 2], "answer", 2)
    assert answer.tokens.tolist() == [1, 5, 6, 7, 2]
    assert answer.weights.tolist() == [0, 0, 0, 1, 1]
    assert (answer.n_prompt, answer.n_rows) == (3, 4)
    assert make_sample([1, 5, 6], [7, 2], "all", 2).weights.tolist() == [0, 1, 1, 1, 1]
    assert make_sample([], [7, 2], "answer", 2).weights.tolist() == [0, 1]


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), max_size=60), st.integers(64, 100), st.integers(1, 5))
def test_packing_keeps_every_sample_whole(lengths: list[int], max_tokens: int, max_sequences: int) -> None:
    samples = [sample(n, row) for row, n in enumerate(lengths)]
    batches = pack(samples, max_tokens, max_sequences)
    assert sorted(i for batch in batches for i in batch.samples) == list(range(len(samples)))
    for batch in batches:
        assert batch.n_tokens <= max_tokens
        assert len(batch.samples) <= max_sequences
        for sequence, i in enumerate(batch.samples):
            rows = np.flatnonzero(batch.sequences == sequence)
            assert np.array_equal(rows, np.arange(rows[0], rows[0] + samples[i].n_rows))
            assert np.array_equal(batch.tokens[rows], samples[i].tokens[:-1])
            assert np.array_equal(batch.targets[rows], samples[i].tokens[1:])
            assert np.array_equal(batch.weights[rows], samples[i].weights[1:])
            assert np.array_equal(batch.positions[rows], np.arange(samples[i].n_rows))
        for array in (batch.tokens, batch.positions, batch.sequences, batch.targets):
            assert array.dtype == np.int32
        assert batch.weights.dtype == np.float32
    again = pack(samples, max_tokens, max_sequences)
    assert [batch.samples for batch in again] == [batch.samples for batch in batches]


def test_best_fit_where_dealing_out_does_not_fit() -> None:
    # dealt out, 60 + 30 and 50 + 40 + 20 would be 90 and 110
    batches = pack([sample(n) for n in (60, 50, 40, 30, 20)], 100)
    assert [batch.samples for batch in batches] == [(0, 2), (1, 3, 4)]
    assert efficiency([b.n_tokens for b in batches]) == 1.0
    assert batches[0].n_targets == int(np.count_nonzero(batches[0].weights))


def test_micro_batches_are_about_equally_long() -> None:
    batches = pack([sample(n) for n in (60, 50, 20, 10)], 100)  # best fit alone: 60 + 20 + 10 and 50, or worse
    assert sorted(batch.n_tokens for batch in batches) == [70, 70]
    assert efficiency([60, 30]) == 0.75
    assert pack([], 60) == []
    assert efficiency([]) == 0.0


def test_too_long_for_a_micro_batch() -> None:
    with pytest.raises(DataError, match="row 7 needs 11 tokens: a micro-batch has 10"):
        pack([sample(11, row=7)], 10)


@pytest.mark.parametrize(
    ("text", "n", "count"),
    [
        ("5%", 1741, 87),
        ("0.05", 100, 5),
        ("0.05", 3, 1),
        ("0.05", 1, 0),
        ("0", 10, 0),
        ("0%", 10, 0),
        ("3", 10, 3),
        ("every:20", 1741, 88),
        ("0.999", 10, 9),
    ],
)
def test_holdout_counts(text: str, n: int, count: int) -> None:
    training, held_out = hold_out(n, Holdout.parse(text), seed=3)
    assert len(held_out) == count
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(n))
    again = hold_out(n, Holdout.parse(text), seed=3)
    assert np.array_equal(again[1], held_out)


def test_holdout_every_and_seeds() -> None:
    assert hold_out(41, Holdout.parse("every:20"), seed=1)[1].tolist() == [0, 20, 40]
    seeds = [hold_out(1000, Holdout.parse("10%"), seed=seed)[1].tolist() for seed in (0, 1)]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "100%", "every:1", "every:0", "every:x", "nan"])
def test_bad_holdout(text: str) -> None:
    with pytest.raises(GgtuneError, match="Can't hold out"):
        Holdout.parse(text)


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(DataError, match="All 3 samples are held out"):
        hold_out(3, Holdout.parse("3"), seed=0)


def test_epoch_order() -> None:
    order = epoch_order(100, seed=4, epoch=2)
    assert sorted(order.tolist()) == list(range(100))
    assert np.array_equal(order, epoch_order(100, seed=4, epoch=2))
    assert not np.array_equal(order, epoch_order(100, seed=4, epoch=3))
    assert not np.array_equal(order, epoch_order(100, seed=5, epoch=2))
