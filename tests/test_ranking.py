"""The ranking against known results: closed forms, synthetic votes, and an independent optimisation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from inference.arena.ranking import Choice, rank


def vote(winner: str | None, *others: str) -> Choice:
    """A battle that the first model won; None: nobody won."""
    return Choice(frozenset({*others} | ({winner} if winner else set())), winner)


def by_model(standings) -> dict:
    return {standing.model: standing for standing in standings}


def simulate_votes(strengths: dict[str, float], per_pair: int, rng: np.random.Generator) -> dict[Choice, float]:
    """Random votes between all pairs, with the probabilities of the Bradley-Terry model."""
    tally = {}
    for a, b in itertools.combinations(strengths, 2):
        wins = rng.binomial(per_pair, expit(strengths[a] - strengths[b]))
        tally |= {vote(a, b): wins, vote(b, a): per_pair - wins}
    return tally


def test_the_odds_of_two_models_are_the_odds_of_their_wins():
    ranked = by_model(rank({vote("a", "b"): 30, vote("b", "a"): 10}, prior=0))
    a, b = ranked["a"], ranked["b"]
    odds = a.strength / (1 - a.strength) / (b.strength / (1 - b.strength))
    assert odds == pytest.approx(30 / 10)
    # The log-odds of 30 to 10 have the variance 1/30 + 1/10; each model's distance from their mean is half of them.
    half = 1.959964 / 2 * np.sqrt(1 / 30 + 1 / 10)
    assert (a.low, a.high) == pytest.approx(tuple(expit([np.log(3) / 2 - half, np.log(3) / 2 + half])))
    assert a.votes == b.votes == 40


def test_a_tie_counts_as_half_a_win_for_each():
    with_ties = rank({vote("a", "b"): 20, vote(None, "a", "b"): 20}, prior=0)
    assert with_ties == rank({vote("a", "b"): 30, vote("b", "a"): 10}, prior=0)


def test_strengths_agree_with_an_independent_optimisation():
    tally = {
        vote("a", "b"): 12, vote("b", "a"): 7, vote("b", "c"): 9, vote("c", "b"): 4, vote("c", "d"): 3,
        vote("d", "c"): 5, vote("a", "b", "d"): 6, vote("d", "a", "b"): 2, vote(None, "b", "c", "d"): 3,
    }  # fmt: skip
    names = "abcd"

    def loss(strengths: np.ndarray) -> float:
        total = 0.0
        for choice, count in tally.items():
            of = {model: strengths[names.index(model)] for model in choice.models}
            chosen = of[choice.winner] if choice.winner else np.mean(list(of.values()))
            total -= count * (chosen - logsumexp(list(of.values())))
        return total + strengths.mean() ** 2

    expected = minimize(loss, np.zeros(4), method="BFGS", options={"gtol": 1e-9}).x
    ranked = by_model(rank(tally, prior=0))
    assert [ranked[name].strength for name in names] == pytest.approx(expit(expected - expected.mean()), abs=1e-6)


def test_the_known_order_is_found_and_the_order_of_votes_does_not_matter():
    strengths = {"weak": -1.0, "strong": 1.5, "middling": 0.2, "fair": 0.6}
    tally = simulate_votes(strengths, 300, np.random.default_rng(1))
    ranked = rank(tally)
    assert [standing.model for standing in ranked] == ["strong", "fair", "middling", "weak"]
    assert rank(dict(reversed(tally.items()))) == ranked
    mean = np.mean(list(strengths.values()))
    assert all(s.low < expit(strengths[s.model] - mean) < s.high for s in ranked)


def test_intervals_contain_the_true_strength_in_95_percent_of_cases():
    strengths = {"a": 0.8, "b": 0.1, "c": -0.9}
    rng = np.random.default_rng(2)
    covered = [
        standing.low <= expit(strengths[standing.model]) <= standing.high
        for _ in range(400)
        for standing in rank(simulate_votes(strengths, 60, rng))
    ]
    assert 0.93 < np.mean(covered) < 0.97


def test_a_model_that_never_lost_has_a_finite_strength_and_more_votes_narrow_its_interval():
    few, many = (by_model(rank({vote("a", "b"): wins})) for wins in (2, 50))
    assert few["a"].low < 0.5 < few["a"].strength  # two votes prove nothing
    assert few["a"].high < 1
    assert many["a"].low > 0.5 and few["a"].strength < many["a"].strength < many["a"].high < 1
    assert many["a"].strength + many["b"].strength == pytest.approx(1)


def test_models_that_no_battle_connects_have_no_strength():
    ranked = rank({vote("a", "b"): 5, vote("b", "a"): 4, vote("c", "d"): 2})
    assert [(s.model, s.votes, s.strength is None) for s in ranked] == [
        ("a", 9, False), ("b", 9, False), ("c", 2, True), ("d", 2, True),
    ]  # fmt: skip
    joined = rank({vote("a", "b"): 5, vote("b", "a"): 4, vote("c", "d"): 2, vote(None, "b", "c", "d"): 1})
    assert all(standing.strength for standing in joined)


def test_without_votes_the_ranking_is_empty():
    assert rank({}) == []
