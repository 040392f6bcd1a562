"""Intervals and tests of paired differences, against scipy's, by counting, and by what they promise."""

import json
import math

import numpy as np
import pytest

from ggtune.scores.statistics import (
    Difference,
    Estimate,
    bootstrap_mean,
    bootstrap_sums,
    paired_difference,
    paired_sums,
    ratio,
)

SCORES = [0, 0, 0.05, 0.1, 0.1, 0.15, 0.2, 0.2, 0.25, 0.3, 0.3, 0.35, 0.4, 0.4, 0.5, 0.6, 0.75, 1, 1, 1]
LOSSES = np.array([12.0, 40, 7, 90, 22, 31, 15, 60, 9, 200])
TOKENS = np.array([5.0, 20, 4, 30, 11, 12, 8, 20, 6, 60])
BEFORE = np.array([0.1, 0.4, 0.3, 0.9, 0.2, 0.6, 0.5, 0.7, 0.3, 0.2, 0.8, 0.4, 0.1, 0.5, 0.6])
AFTER = np.array([0.3, 0.4, 0.5, 0.8, 0.6, 0.9, 0.4, 0.9, 0.2, 0.6, 0.9, 0.3, 0.4, 0.6, 0.9])


def near(found: Estimate, low: float, high: float) -> bool:
    """Within a few hundredths of the interval's width, as 4000 draws have it."""
    width = high - low
    return abs(found.low - low) < 0.05 * width and abs(found.high - high) < 0.05 * width


def test_intervals_are_those_of_scipy() -> None:
    """``scipy.stats.bootstrap(..., method="BCa", n_resamples=200_000)``, scipy 1.17."""
    plain = bootstrap_mean(SCORES)
    assert plain.value == pytest.approx(0.3825)
    assert near(plain, 0.260000, 0.545000)
    per_token = bootstrap_mean(LOSSES / TOKENS, TOKENS)
    assert per_token.value == pytest.approx(486 / 176)
    assert near(per_token, 2.275000, 3.163404)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Means of 30 skewed values."""
    rng = np.random.default_rng(8)
    held = [
        found.low <= 1.0 <= found.high for found in (bootstrap_mean(rng.gamma(2, 0.5, 30), seed=i) for i in range(200))
    ]
    assert 0.90 <= np.mean(held) <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    assert bootstrap_mean(SCORES, seed=3) == bootstrap_mean(SCORES, seed=3)
    assert bootstrap_mean(SCORES, seed=3) != bootstrap_mean(SCORES, seed=4)
    assert paired_difference(BEFORE, AFTER, seed=3) == paired_difference(BEFORE, AFTER, seed=3)


def test_none_of_twenty_is_not_certainly_none() -> None:
    """Clopper and Pearson: 1 - 0.025^(1/20)."""
    none = bootstrap_mean([0.0] * 20, share=True)
    assert none == Estimate(0.0, 0.0, pytest.approx(0.168433, abs=1e-6))  # type: ignore[arg-type]
    every = bootstrap_mean([1.0] * 20, share=True)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)
    assert bootstrap_mean([0.5] * 20, share=True) == Estimate(0.5, 0.5, 0.5)


def test_one_sample_or_none_has_no_interval() -> None:
    one = bootstrap_mean([0.7])
    assert one.value == 0.7
    assert not one.has_interval
    assert one.text() == "0.70 [?]"
    assert bootstrap_mean([1.0], share=True).text() == "1.00 [?]"
    none = bootstrap_mean([])
    assert math.isnan(none.value)
    assert none.text() == "-"


def test_a_score_of_sums() -> None:
    """The interval of a monotonous function is that function of the interval."""
    columns = np.stack([LOSSES, TOKENS], axis=1)
    loss = bootstrap_sums(columns, ratio)
    perplexity = bootstrap_sums(columns, lambda sums: np.exp(ratio(sums)))
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert perplexity.low == pytest.approx(math.exp(loss.low), rel=0.05)
    assert perplexity.high == pytest.approx(math.exp(loss.high), rel=0.05)


def test_texts_and_json() -> None:
    found = Estimate(0.3149, 0.2249, 0.4149)
    assert found.text() == "0.31 [0.22, 0.41]"
    assert found.text(3) == "0.315 [0.225, 0.415]"
    assert found.half_width == pytest.approx(0.095)
    for estimate in (found, bootstrap_mean([0.7]), bootstrap_mean([])):
        again = Estimate.from_dict(json.loads(json.dumps(estimate.to_dict(), allow_nan=False)))
        assert repr(again) == repr(estimate)
    better = Difference(0.12, 0.07, 0.17, 0.0031)
    assert better.text() == "+0.12 [+0.07, +0.17], p = 0.003"
    assert better.is_significant
    assert Difference(-0.12, -0.2, 0.01, 0.0001).text() == "-0.12 [-0.20, +0.01], p < 0.001"
    assert not Difference(0.1, -0.1, 0.2, 0.05).is_significant


def test_p_value_of_a_few_pairs_is_counted() -> None:
    """All flips of the 14 signs that matter, as scipy.stats.permutation_test counts them."""
    found = paired_difference(BEFORE, AFTER)
    assert found.value == pytest.approx(float(np.mean(AFTER - BEFORE)))
    assert found.p_value == 0.0181884765625
    assert paired_difference([0] * 5, [1] * 5).p_value == 2 / 32
    assert paired_difference([0, 0, 0], [0, 0, 1]).p_value == 1.0
    assert paired_difference(AFTER, BEFORE).value == -found.value


def test_p_value_of_the_same_is_one() -> None:
    found = paired_difference(BEFORE, BEFORE)
    assert (found.value, found.p_value) == (0.0, 1.0)
    many = np.linspace(0, 1, 100)
    assert paired_difference(many, many).p_value == 1.0


def test_p_value_is_uniform_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(2)
    found = [
        paired_difference(a, a + rng.normal(0, 1, 40), seed=i).p_value
        for i, a in enumerate(rng.normal(0, 1, (100, 40)))
    ]
    assert 0.0 <= np.mean(np.array(found) < 0.05) <= 0.11
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)


def test_a_small_difference_of_pairs_is_found_where_samples_differ_much() -> None:
    """What pairs are for: each sample gets a little better, and the two intervals overlap by far."""
    rng = np.random.default_rng(4)
    before = rng.uniform(0, 1, 60)
    after = before + 0.05 + rng.normal(0, 0.05, 60)
    found = paired_difference(before, after)
    assert found.p_value < 0.001
    assert 0.03 < found.low < found.value < found.high < 0.07
    assert bootstrap_mean(before).high > bootstrap_mean(after).low


def test_pairs_of_sums_exchange_whole_samples() -> None:
    """Of weighted means: tokens go with their losses."""
    first = np.stack([LOSSES, TOKENS], axis=1)
    second = np.stack([0.8 * LOSSES, TOKENS], axis=1)
    found = paired_sums(first, second, ratio)
    assert found.value == pytest.approx(-0.2 * 486 / 176)
    assert found.p_value == 2 / 2**10  # all got better: only all or none exchanged is as far
    assert found.high < 0
    by_means = paired_difference(LOSSES / TOKENS, 0.8 * LOSSES / TOKENS, TOKENS)
    assert by_means.value == pytest.approx(found.value)
    assert by_means.p_value == found.p_value


def test_pairs_of_different_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="pairs of different samples"):
        paired_difference([1, 2], [1, 2, 3])
    assert math.isnan(paired_difference([], []).p_value)
