"""Which models visitors prefer, from their votes: a Bradley-Terry ranking with 95 % intervals. Knows no database.

Each model i has a log-strength t_i; of a set S it is preferred with probability exp(t_i) / sum over S of exp(t_j).
For two models that is Bradley and Terry's (1952), for three Luce's choice axiom (1959); Hunter, "MM algorithms for
generalized Bradley-Terry models" (Annals of Statistics 32, 2004), treats both. A tie counts as an equal share of a
win for each, which needs no further parameter as Davidson's model (1970) does; the intervals are then wider than they
must be, since a share varies less than a win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # the 97.5 % point of the normal distribution
PRIOR = 1.0  # votes; see `fit`
CONVERGED = 1e-10


@dataclass(frozen=True)
class Choice:
    """A vote: the ids of the models in the battle, and the one that was preferred (None: tie, or all bad)."""

    models: frozenset[str]
    winner: str | None


@dataclass(frozen=True)
class Standing:
    """A model's place. `strength` is the probability in (0, 1) that it is preferred to a model of average strength;
    `low` and `high` bound it with 95 %. All three are None where too few votes connect it with the others."""

    model: str
    votes: int
    strength: float | None = None
    low: float | None = None
    high: float | None = None


def rank(tally: Mapping[Choice, float], prior: float = PRIOR) -> list[Standing]:
    """The models by strength. Models that no chain of battles connects with the largest group can't be compared with
    it; they come last, without a strength."""
    # Sorted, so that the sums below don't depend on the order.
    ordered = sorted(tally.items(), key=lambda item: (sorted(item[0].models), item[0].winner or ""))
    counts = {choice: count for choice, count in ordered if count > 0}
    if not counts:
        return []
    votes: dict[str, float] = {}
    for choice, count in counts.items():
        for model in choice.models:
            votes[model] = votes.get(model, 0) + count
    groups = connected(choice.models for choice in counts)
    group = max(groups, key=lambda models: (sum(votes[model] for model in models), len(models)))
    models = sorted(group)
    strengths, covariance = fit(models, {c: n for c, n in counts.items() if c.models <= group}, prior)
    errors = Z * np.sqrt(np.diag(covariance))
    shares = [1 / (1 + np.exp(-bound)) for bound in (strengths, strengths - errors, strengths + errors)]
    ranked = [
        Standing(model, round(votes[model]), *(float(share[i]) for share in shares)) for i, model in enumerate(models)
    ]
    ranked.sort(key=lambda standing: -(standing.strength or 0))
    return ranked + [Standing(model, round(votes[model])) for model in sorted(votes.keys() - group)]


def connected(battles: Iterable[Iterable[str]]) -> list[set[str]]:
    """The groups within which battles lead from each model to each other one."""
    groups: list[set[str]] = []
    for battle in battles:
        joined = set(battle)
        apart = []
        for group in groups:
            if group & joined:
                joined |= group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return groups


def fit(models: list[str], tally: Mapping[Choice, float], prior: float = PRIOR) -> tuple[np.ndarray, np.ndarray]:
    """The most likely log-strengths, their mean 0, and their covariance (the inverse of the Fisher information): arrays
    of shapes (n,) and (n, n). By Newton's method; the likelihood is concave.

    `prior` is a weak belief that keeps a model finite which never lost: so many votes against a model of average
    strength, half of them won; with 1, as Jeffreys's prior has it for a single proportion. 0 gives the plain
    likelihood, which has no maximum in that case.
    """
    place = {model: i for i, model in enumerate(models)}
    sets = [(np.array([place[model] for model in choice.models]), choice.winner, n) for choice, n in tally.items()]
    strengths = np.zeros(len(models))
    for _ in range(100):
        gradient, information = derivatives(strengths, sets, place, prior)
        step = np.linalg.pinv(information, hermitian=True) @ gradient
        strengths += step / max(1.0, np.abs(step).max())  # a step of at most 1 does not overshoot
        if np.abs(step).max() < CONVERGED:
            break
    strengths -= strengths.mean()
    centre = np.eye(len(models)) - 1 / len(models)
    _, information = derivatives(strengths, sets, place, prior)
    return strengths, centre @ np.linalg.pinv(information, hermitian=True) @ centre


def derivatives(
    strengths: np.ndarray, sets: list[tuple[np.ndarray, str | None, float]], place: dict[str, int], prior: float
) -> tuple[np.ndarray, np.ndarray]:
    """The log-likelihood's gradient, shape (n,), and the Fisher information, shape (n, n)."""
    against_average = 1 / (1 + np.exp(-strengths))
    gradient = prior * (0.5 - against_average)
    information = np.diag(prior * against_average * (1 - against_average))
    for members, winner, count in sets:
        chances = np.exp(strengths[members] - strengths[members].max())
        chances /= chances.sum()
        won = members == place[winner] if winner is not None else np.full(len(members), 1 / len(members))
        gradient[members] += count * (won - chances)
        information[np.ix_(members, members)] += count * (np.diag(chances) - np.outer(chances, chances))
    return gradient, information
