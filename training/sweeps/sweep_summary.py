"""The results of a sweep's finished runs: figures of each point, the Pareto front, the effect of each field.

- *Point*: the runs that differ in their seed only. Intervals are over the questions (of a loss: the conversations),
  each counted with its mean over the seeds. They show how exactly the figure is known, not how much seeds differ.
- *Pareto front*: the points for which no other point is better in both objective and time.
- *Effect of a field*: the mean difference between runs that differ in this field alone, with Student's 95 % interval
  over the pairs of runs. If there is one pair: the paired interval over its questions. Seconds are compared as a ratio,
  by their logarithms.

`sweep_report.py` shows them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import stats

from training.evaluation.statistics import CONFIDENCE, Estimate, compare, estimate
from training.sweeps.design import SEED, Fields, Sweep, Value

if TYPE_CHECKING:
    from training.sweeps.trial import MeasuredRun

Interval = tuple[float, float, float]  # a mean and the ends of its interval


@dataclass(frozen=True)
class Run:
    """A finished run: its chosen fields, and the result of `trial.measure`."""

    chosen: Fields
    measured: MeasuredRun

    def figure(self, name: str) -> Estimate:
        """A measured figure with its interval."""
        return pooled_estimate([self], name)


@dataclass(frozen=True)
class Point:
    """Finished runs that differ only in their seed."""

    fields: Fields
    runs: list[Run]

    def mean(self, name: Literal["steps", "tokens", "seconds"]) -> float:
        """The mean over the runs."""
        return float(np.mean([run.measured[name] for run in self.runs]))

    def figure(self, name: str) -> Estimate:
        """A measured figure over all runs, with its interval."""
        return pooled_estimate(self.runs, name)


@dataclass(frozen=True)
class Effect:
    """The effect of changing a field from `first` to `second`: the mean change of each figure over `pairs` of runs with
    the ends of its interval, and the ratio of seconds."""

    field: str
    first: Value
    second: Value
    pairs: int
    changes: dict[str, Interval]
    seconds: Interval


def pooled_estimate(runs: Sequence[Run], name: str) -> Estimate:
    """A figure over the questions that all runs were asked, each with its mean over the runs."""
    of_runs = [run.measured["values"][name] for run in runs]
    keys = [key for key in of_runs[0] if all(key in values for values in of_runs)]
    values = [of_runs[0][key] if len(of_runs) == 1 else float(np.mean([v[key] for v in of_runs])) for key in keys]
    weights = runs[0].measured["weights"].get(name)
    return estimate(values, [weights[key] for key in keys] if weights else None)


def group_by_point(runs: Sequence[Run]) -> list[Point]:
    """The points, in the order of the runs."""
    by_fields: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_fields[json.dumps(without(run.chosen, SEED))].append(run)
    return [Point(without(found[0].chosen, SEED), found) for found in by_fields.values()]


def without(fields: Fields, name: str) -> Fields:
    """The fields except `name`."""
    return {key: value for key, value in fields.items() if key != name}


def pareto_front(points: Sequence[Point], design: Sweep) -> list[Point]:
    """The points for which no other is better in both objective and seconds, sorted by seconds."""
    sign = 1 if design.lower_is_better else -1
    measured = [(p.mean("seconds"), sign * p.figure(design.objective).value, p) for p in points]
    front: list[Point] = []
    best = math.inf
    for _, value, point in sorted(measured, key=lambda each: each[:2]):
        if value < best:
            front.append(point)
            best = value
    return front


def effects(runs: Sequence[Run], design: Sweep) -> list[Effect]:
    """The effect of each listed field, from each value to the next in the sweep file."""
    found: list[Effect] = []
    for field, values in design.choices().items():
        for first, second in zip(values, values[1:], strict=False):
            rest = {json.dumps(without(r.chosen, field)): r for r in runs if r.chosen[field] == first}
            others = [(rest.get(json.dumps(without(r.chosen, field))), r) for r in runs if r.chosen[field] == second]
            if pairs := [(one, other) for one, other in others if one] if field != SEED else []:
                found.append(effect_of(field, first, second, pairs, figure_names(runs, design)))
    return found


def effect_of(field: str, first: Value, second: Value, pairs: list[tuple[Run, Run]], names: Sequence[str]) -> Effect:
    """The effect of one change, over the pairs of runs that differ in it alone."""
    changes = {name: difference(pairs, name) for name in names}
    mean, low, high = student_interval([math.log(b.measured["seconds"] / a.measured["seconds"]) for a, b in pairs])
    return Effect(field, first, second, len(pairs), changes, (math.exp(mean), math.exp(low), math.exp(high)))


def difference(pairs: list[tuple[Run, Run]], name: str) -> Interval:
    """The mean difference of a figure with its interval: over the pairs, or over the questions of a single pair."""
    if len(pairs) > 1:
        return student_interval([b.figure(name).value - a.figure(name).value for a, b in pairs])
    ((a, b),) = [(one.measured["values"][name], other.measured["values"][name]) for one, other in pairs]
    weights = pairs[0][0].measured["weights"].get(name)
    keys = [key for key in a if key in b]
    common_weights = [weights[key] for key in keys] if weights else None
    found = compare([a[key] for key in keys], [b[key] for key in keys], common_weights)
    return found.value, found.low, found.high


def student_interval(differences: Sequence[float]) -> Interval:
    """The mean and the ends of Student's interval; these are NaN for a single difference."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences)
    return mean, mean - float(half), mean + float(half)


def figure_names(runs: Sequence[Run], design: Sweep) -> list[str]:
    """The measured figures, the objective first."""
    return [design.objective, *(name for name in runs[0].measured["values"] if name != design.objective)]


def table_order(run: Run, design: Sweep) -> list[float]:
    """A sort key: runs are in the order in which the sweep file lists the values."""
    choices = design.choices()
    names = [*design.varied, SEED] if SEED not in design.varied else design.varied
    return [choices[name].index(run.chosen[name]) if name in choices else number(run.chosen[name]) for name in names]


def number(value: Value) -> float:
    """The value of a field that is a range."""
    assert isinstance(value, int | float)  # `Range` holds numbers only
    return float(value)
