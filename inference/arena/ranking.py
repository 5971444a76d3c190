"""Rank models by blind votes: a Bradley-Terry ranking with 95 % intervals.

Each model i has a log-strength t_i. Visitors prefer it among a set S with probability exp(t_i) / sum over S of
exp(t_j). For two models this is the model of Bradley and Terry (1952), for three Luce's choice axiom (1959). Hunter
treats both in "MM algorithms for generalized Bradley-Terry models" (Annals of Statistics 32, 2004).

A tie counts as an equal share of a win for each model. Davidson's model (1970) needs a further parameter for ties. The
intervals are then a little too wide, because a share varies less than a win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Z_95 = 1.959964  # the 97.5 % point of the normal distribution
PRIOR_VOTES = 1.0  # see `fit`
TOLERANCE = 1e-10  # of the log-strengths
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """A vote: the ids of the models in the battle, and the preferred one (None: a tie, or all are bad)."""

    models: frozenset[str]
    winner: str | None


@dataclass(frozen=True)
class Standing:
    """A model's place in the ranking.

    `strength` is the probability in (0, 1) that visitors prefer it to a model of average strength. `low` and `high` are
    its 95 % interval. All three are None if too few votes connect the model with the others.
    """

    model: str
    votes: int
    strength: float | None = None
    low: float | None = None
    high: float | None = None


def rank(tally: Mapping[Choice, float], prior: float = PRIOR_VOTES) -> list[Standing]:
    """Return the models by strength, strongest first.

    Models that no chain of battles connects with the largest group cannot be compared with it. They come last, without
    a strength.
    """
    # Sorted, so that the sums below do not depend on the order.
    ordered = sorted(tally.items(), key=lambda item: (sorted(item[0].models), item[0].winner or ""))
    counts = {choice: count for choice, count in ordered if count > 0}
    if not counts:
        return []
    votes: dict[str, float] = {}
    for choice, count in counts.items():
        for model in choice.models:
            votes[model] = votes.get(model, 0) + count
    groups = connected_groups(choice.models for choice in counts)
    group = max(groups, key=lambda models: (sum(votes[model] for model in models), len(models)))
    models = sorted(group)
    strengths, covariance = fit(models, {c: n for c, n in counts.items() if c.models <= group}, prior)
    errors = Z_95 * np.sqrt(np.diag(covariance))
    shares = [1 / (1 + np.exp(-bound)) for bound in (strengths, strengths - errors, strengths + errors)]
    ranked = [
        Standing(model, round(votes[model]), *(float(share[i]) for share in shares)) for i, model in enumerate(models)
    ]
    ranked.sort(key=lambda standing: -(standing.strength or 0))
    return ranked + [Standing(model, round(votes[model])) for model in sorted(votes.keys() - group)]


def connected_groups(battles: Iterable[Iterable[str]]) -> list[set[str]]:
    """Return the groups of models that battles connect with each other."""
    groups: list[set[str]] = []
    for battle in battles:
        joined = set(battle)
        separate = []
        for group in groups:
            if group & joined:
                joined |= group
            else:
                separate.append(group)
        groups = [*separate, joined]
    return groups


def fit(models: list[str], tally: Mapping[Choice, float], prior: float = PRIOR_VOTES) -> tuple[Array, Array]:
    """Return the most likely log-strengths, shape (n,), with mean 0, and their covariance, shape (n, n).

    The covariance is the inverse of the Fisher information. The likelihood is concave; Newton's method maximizes it.

    `prior` keeps the strength of a model that never lost finite. It adds that number of votes against a model of
    average strength, half of them won. 1 corresponds to Jeffreys's prior for a single proportion. 0 gives the plain
    likelihood, which has no maximum for a model that never lost.
    """
    index = {model: i for i, model in enumerate(models)}
    sets = [(np.array([index[model] for model in choice.models]), choice.winner, n) for choice, n in tally.items()]
    strengths = np.zeros(len(models))
    for _ in range(100):
        gradient, information = derivatives(strengths, sets, index, prior)
        step = np.linalg.pinv(information, hermitian=True) @ gradient
        strengths += step / max(1.0, np.abs(step).max())  # a step of at most 1 does not overshoot
        if np.abs(step).max() < TOLERANCE:
            break
    strengths -= strengths.mean()
    centring = np.eye(len(models)) - 1 / len(models)
    _, information = derivatives(strengths, sets, index, prior)
    return strengths, centring @ np.linalg.pinv(information, hermitian=True) @ centring


def derivatives(
    strengths: Array, sets: list[tuple[npt.NDArray[np.intp], str | None, float]], index: dict[str, int], prior: float
) -> tuple[Array, Array]:
    """Return the gradient of the log-likelihood, shape (n,), and the Fisher information, shape (n, n)."""
    against_average = 1 / (1 + np.exp(-strengths))
    gradient = prior * (0.5 - against_average)
    information = np.diag(prior * against_average * (1 - against_average))
    for members, winner, count in sets:
        chances = np.exp(strengths[members] - strengths[members].max())
        chances /= chances.sum()
        won = members == index[winner] if winner is not None else np.full(len(members), 1 / len(members))
        gradient[members] += count * (won - chances)
        information[np.ix_(members, members)] += count * (np.diag(chances) - np.outer(chances, chances))
    return gradient, information
