"""Intervals and paired tests: published values, values computed by hand, and simulations with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from inference.errors import LabError
from training.evaluation.statistics import compare, estimate, holm, newcombe, wilson


def flags(right: int, wrong: int) -> list[bool]:
    """`right` right and `wrong` wrong answers."""
    return [True] * right + [False] * wrong


def test_newcombe_interval_against_published_values():
    # Newcombe 1998b, table II: 36 both, 12 and 2 only one, none neither; method 10 gives 0.0569 to 0.3404.
    assert [round(end, 4) for end in newcombe(36, 12, 2, 50)] == [0.0569, 0.3404]


def test_a_share_of_zero_or_one_has_wilsons_interval():
    z = stats.norm.ppf(0.975)
    found = estimate(flags(26, 0))
    assert (found.value, found.high) == (1.0, 1.0) and found.low == pytest.approx(26 / (26 + z * z))
    assert estimate(flags(0, 26)).high == pytest.approx(z * z / (26 + z * z))


def test_bootstrap_intervals_are_close_to_theory():
    found = estimate(flags(442, 54))
    assert (found.low, found.high) == pytest.approx(wilson(442, 496), abs=0.005)
    values = np.random.default_rng(3).normal(5, 2, 400)
    theory = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    found = estimate(values.tolist())
    assert (found.low, found.high) == pytest.approx(theory, abs=0.03)
    assert estimate(values.tolist()) == found  # the same values give the same interval


def test_a_loss_is_nats_per_token_weighted_by_tokens():
    found = estimate([2.0, 30.0, 8.0], [1.0, 10.0, 4.0])
    assert found.value == pytest.approx(40 / 15)
    assert estimate([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).low == estimate([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]).high == 0.5


def test_intervals_cover_the_truth_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    shares = [estimate((rng.random(60) < 0.7).tolist()) for _ in range(120)]
    means = [estimate(rng.exponential(1.0, 60).tolist()) for _ in range(120)]
    # 120 draws of a true 95 % lie between 0.90 and 0.99 in 98 of 100 cases.
    assert 0.90 <= np.mean([found.low <= 0.7 <= found.high for found in shares]) <= 0.99
    assert 0.90 <= np.mean([found.low <= 1.0 <= found.high for found in means]) <= 0.99


def test_mcnemar_against_hand_computed_values():
    first, second = flags(1, 9) + flags(40, 50), flags(0, 1) + flags(9, 0) + flags(40, 50)
    found = compare(first, second)
    # One way once, the other way nine times: 2 · (C(10,0) + C(10,1)) / 2^10.
    assert found.p == pytest.approx(22 / 1024) and found.value == pytest.approx(0.08)
    same = compare(flags(26, 0), flags(26, 0))
    assert same.p == 1 and same.value == 0 and same.low < -0.05 and same.high > 0.05


def test_the_permutation_test_against_an_enumeration_by_hand():
    # Of the eight ways to exchange the two, only this one and its opposite differ by so much.
    assert compare([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]).p == pytest.approx(2 / 8)
    assert compare([1.0, 2.0], [1.0, 2.0]).p == 1


def test_holm_against_published_values():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.02), "holm")
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_known_winner_is_found_and_no_other():
    rng = np.random.default_rng(1)
    hard = rng.random(300)
    good, weak, twin = (((rng.random(300) * skill) > hard).tolist() for skill in (1.6, 1.0, 1.0))
    won = compare(weak, good)
    assert won.p < 0.001 and 0 < won.low < won.value < won.high
    drawn = compare(weak, twin)
    assert drawn.low < 0 < drawn.high and drawn.p > 0.05
    loss = rng.exponential(1.0, 200)
    better = compare(loss.tolist(), (loss - 0.1 + rng.normal(0, 0.3, 200)).tolist(), [1.0] * 200)
    assert better.p < 0.01 and better.high < 0


def test_false_positives_are_rare():
    rng = np.random.default_rng(2)
    pairs = [((rng.random(80) < 0.6).tolist(), (rng.random(80) < 0.6).tolist()) for _ in range(60)]
    assert np.mean([compare(*pair).p < 0.05 for pair in pairs]) <= 0.1


def test_too_few_values_are_refused():
    with pytest.raises(LabError, match="at least two"):
        estimate([1.5])
    with pytest.raises(LabError, match="same questions"):
        compare([1.0, 2.0], [1.0])
    assert math.isfinite(estimate([True]).low)
