"""What a sweep's finished runs say: figures of points over their seeds, the Pareto front, the effect of each field.

- *Points*: runs that differ in their seed only. Intervals are over the questions (of a loss: the conversations), each
  counted with its mean over the seeds; they tell how well the figure is known for such runs, not how much seeds differ.
- *Pareto front*: the points that no other beats in both the objective and the time.
- *Effect of a field*: the mean difference between runs that differ in it alone (same seed, too), with Student's 95 %
  interval over these pairs; where there is one pair, with the paired interval over its questions. Seconds as a ratio
  (by logarithms).

`sweep_report.py` shows them.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from training.evaluation.statistics import CONFIDENCE, Estimate, compare, estimate
from training.sweeps.design import SEED, Fields, Sweep, Value


@dataclass(frozen=True)
class Run:
    """A finished run: what was chosen for it and what `trial.measure` found."""

    chosen: Fields
    measured: dict

    def figure(self, what: str) -> Estimate:
        """Its objective or loss."""
        return pooled([self], what)

    def answers(self, question: str) -> list[bool]:
        """Whether it answered the question rightly; empty where it was not asked."""
        return [values[question] for values in self.measured["values"].values() if question in values]


@dataclass(frozen=True)
class Point:
    """The finished runs that differ only in their seed."""

    fields: Fields
    runs: list[Run]

    def mean(self, name: str) -> float:
        """Of `steps`, `tokens` or `seconds`."""
        return float(np.mean([run.measured[name] for run in self.runs]))

    def figure(self, what: str) -> Estimate:
        """Objective or loss over all of its runs."""
        return pooled(self.runs, what)


@dataclass(frozen=True)
class Effect:
    """What going from one value of a field to another changed: means over pairs of runs and the intervals' ends."""

    field: str
    first: Value
    second: Value
    pairs: int
    changes: dict[str, tuple[float, float, float]]
    seconds: tuple[float, float, float]


def pooled(runs: Sequence[Run], what: str) -> Estimate:
    """The figure over the runs' questions, each with its mean over the runs."""
    found = [run.measured["values"][what] for run in runs]
    keys = [key for key in found[0] if all(key in values for values in found)]
    values = [found[0][key] if len(found) == 1 else float(np.mean([v[key] for v in found])) for key in keys]
    weights = runs[0].measured["weights"].get(what)
    return estimate(values, [weights[key] for key in keys] if weights else None)


def points_of(runs: Sequence[Run]) -> list[Point]:
    """The runs by what differs but the seed, in the order of the runs."""
    by_fields: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_fields[json.dumps(without(run.chosen, SEED))].append(run)
    return [Point(without(found[0].chosen, SEED), found) for found in by_fields.values()]


def without(fields: Fields, name: str) -> Fields:
    """The fields but that one."""
    return {key: value for key, value in fields.items() if key != name}


def pareto(points: Sequence[Point], design: Sweep) -> list[Point]:
    """The points that no other beats in objective and seconds, by seconds."""
    sign = 1 if design.lower_is_better else -1
    places = {id(p): (p.mean("seconds"), sign * p.figure(design.objective).value) for p in points}
    front, best = [], math.inf
    for point in sorted(points, key=lambda p: places[id(p)]):
        if places[id(point)][1] < best:
            front.append(point)
            best = places[id(point)][1]
    return front


def effects(runs: Sequence[Run], design: Sweep) -> list[Effect]:
    """Of each listed field, between its values as they follow each other."""
    found = []
    for field, values in design.choices().items():
        for first, second in zip(values, values[1:], strict=False):
            rest = {json.dumps(without(r.chosen, field)): r for r in runs if r.chosen[field] == first}
            others = [(rest.get(json.dumps(without(r.chosen, field))), r) for r in runs if r.chosen[field] == second]
            if pairs := [(one, other) for one, other in others if one] if field != SEED else []:
                found.append(effect(field, first, second, pairs, measured_in(runs, design)))
    return found


def effect(field: str, first: Value, second: Value, pairs: list[tuple[Run, Run]], names: Sequence[str]) -> Effect:
    """Of one change, over the pairs of runs that differ in it alone."""
    changes = {name: change(pairs, name) for name in names}
    ratios = student([math.log(b.measured["seconds"] / a.measured["seconds"]) for a, b in pairs])
    return Effect(field, first, second, len(pairs), changes, tuple(math.exp(value) for value in ratios))


def change(pairs: list[tuple[Run, Run]], what: str) -> tuple[float, float, float]:
    """Of a figure: the mean over pairs and its interval, or over the questions of a single pair."""
    if len(pairs) > 1:
        return student([b.figure(what).value - a.figure(what).value for a, b in pairs])
    ((a, b),) = [(one.measured["values"][what], other.measured["values"][what]) for one, other in pairs]
    weights = pairs[0][0].measured["weights"].get(what)
    keys = [key for key in a if key in b]
    found = compare([a[key] for key in keys], [b[key] for key in keys], weights and [weights[key] for key in keys])
    return found.value, found.low, found.high


def student(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of Student's interval; NaN for these where there is one difference only."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences)
    return mean, mean - float(half), mean + float(half)


def measured_in(runs: Sequence[Run], design: Sweep) -> list[str]:
    """The objective first, then what else was measured."""
    return [design.objective, *(name for name in runs[0].measured["values"] if name != design.objective)]


def position(run: Run, design: Sweep) -> list[float]:
    """Where a run stands in the tables: as the sweep file lists the values."""
    choices = design.choices()
    names = [*design.varied, SEED] if SEED not in design.varied else design.varied
    return [choices[name].index(run.chosen[name]) if name in choices else float(run.chosen[name]) for name in names]
