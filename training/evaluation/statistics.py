"""95 % intervals over questions, and paired tests of two models on the same questions.

There is one value for each question: True or False for right and wrong, or a number for a length or a loss. Intervals
of means are SciPy's BCa bootstrap (Efron 1987) with a fixed seed, so the same values give the same interval. If all
answers are right, so are all resamples, and the interval would be a point. So a share has Wilson's interval (1927) if
fewer than five answers are right or fewer than five are wrong. A difference of shares has Newcombe's interval (1998b,
method 10), which is based on Wilson's, if the models differ on fewer than ten questions or agree on fewer than ten.

Holm's adjustment is our own: SciPy has none, and statsmodels is a large dependency for five lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from inference.errors import LabError

CONFIDENCE = 0.95
RESAMPLES = 9_999
SEED = 0
FEW = 5  # right or wrong answers: the rule of thumb for a binomial's normal approximation
FEW_DISCORDANT = 10  # in simulations with 7 of 66 differing, the bootstrap's interval covers only 92.5 %


@dataclass(frozen=True)
class Estimate:
    """A mean or share of `count` values and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """The second model's mean minus the first's on `count` common questions, its 95 % interval, and the two-sided p
    value of no difference by `test`."""

    value: float
    low: float
    high: float
    count: int
    p: float
    test: str


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927)."""
    found = stats.binomtest(right, asked).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def estimate(values: Sequence[bool] | Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of `values` with its interval. With `weights` it is the sum of values over the sum of weights, as in
    nats per token; questions are resampled, not tokens. Raises LabError for fewer than two real values."""
    data = np.asarray(values, dtype=float)
    count = len(data)
    if all(isinstance(value, bool) for value in values) and count:
        right = int(data.sum())
        if min(right, count - right) < FEW:
            return Estimate(right / count, *wilson(right, count), count)
    if count < 2:
        raise LabError(f"{count} answer(s) have no interval: ask at least two questions.")
    if weights is None:
        return Estimate(float(data.mean()), *bootstrap(data), count)
    shares = np.asarray(weights, dtype=float)
    return Estimate(float(data.sum() / shares.sum()), *bootstrap(data, shares), count)


def bootstrap(data: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """The BCa interval of a mean, or of a ratio of sums. It is a point if all values are equal."""
    ratios = data if weights is None else data / weights
    if np.ptp(ratios) == 0:
        return float(ratios[0]), float(ratios[0])
    sample = (data,) if weights is None else (data, weights)

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return parts[0].mean(axis) if len(parts) == 1 else parts[0].sum(axis) / parts[1].sum(axis)

    found = stats.bootstrap(
        sample, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method="BCa", rng=np.random.default_rng(SEED), batch=1000,
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def compare(
    first: Sequence[bool] | Sequence[float],
    second: Sequence[bool] | Sequence[float],
    weights: Sequence[float] | None = None,
) -> Difference:
    """`second` minus `first`, paired by question.

    Right and wrong: McNemar's exact test (1947), the binomial test of the questions that only one model answers right.
    Real values: Fisher's permutation test, which swaps the models in single questions (9,999 draws, so p is at least
    0.0002). `weights` are those of `estimate`, equal for both. Raises LabError for fewer than two real values and for
    different numbers of questions."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if len(a) != len(b) or not len(a):
        raise LabError(f"A comparison needs the same questions: there are {len(a)} and {len(b)}.")
    if all(isinstance(value, bool) for value in (*first, *second)):
        return compare_shares(a, b)
    if len(a) < 2:
        raise LabError("One answer has no interval: ask at least two questions.")
    delta = b - a
    value = delta.mean() if weights is None else delta.sum() / np.sum(weights)
    interval = bootstrap(delta, None if weights is None else np.asarray(weights, dtype=float))
    test = "paired permutation"
    if not delta.any():
        return Difference(0.0, *interval, len(a), 1.0, test)
    # The sum of the weights is the same in every permutation, so the test on the mean is equivalent.
    found = stats.permutation_test(
        (delta,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES, batch=1000,
        rng=np.random.default_rng(SEED),
    )  # fmt: skip
    return Difference(float(value), *interval, len(a), float(found.pvalue), test)


def compare_shares(a: np.ndarray, b: np.ndarray) -> Difference:
    """The difference of two shares on the same questions. `a` and `b` are zeros and ones."""
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    both = int(((a == 1) & (b == 1)).sum())
    discordant = only_first + only_second
    p = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    alike = len(a) - discordant
    interval = (
        bootstrap(b - a)
        if min(discordant, alike) >= FEW_DISCORDANT
        else newcombe(both, only_second, only_first, len(a))
    )
    return Difference(float((b - a).mean()), *interval, len(a), float(p), "McNemar, exact")


def newcombe(both: int, only_second: int, only_first: int, asked: int) -> tuple[float, float]:
    """The 95 % score interval of the difference of two paired shares, second minus first (Newcombe 1998b, Statistics in
    Medicine 17:2635, method 10)."""
    neither = asked - both - only_second - only_first
    second, first = both + only_second, both + only_first
    p2, p1 = second / asked, first / asked
    (l2, u2), (l1, u1) = wilson(second, asked), wilson(first, asked)
    spread = math.sqrt(second * (asked - second) * first * (asked - first))
    phi = 0.0
    if spread:
        covariance = both * neither - only_second * only_first
        # The paper corrects for continuity if the correlation is positive.
        phi = (max(covariance - asked / 2, 0) if covariance > 0 else covariance) / spread
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    above = (u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p1 - l1) + (p1 - l1) ** 2
    return p2 - p1 - math.sqrt(max(below, 0.0)), p2 - p1 + math.sqrt(max(above, 0.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values in their order, adjusted for their number (Holm 1979): the chance of any false positive among them
    stays at 5 %."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=float)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()
