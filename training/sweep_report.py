"""What a sweep found: `report.md` with its tables, and three charts beside it.

- *Points*: the means over a point's seeds. Intervals are over the questions (of a loss: the conversations), each
  counted with its mean over the seeds; they tell how well the figure is known for such runs, not how much seeds
  differ: for that there is the table of runs.
- *Pareto front*: the points that no other beats in both the objective and the time.
- *Effect of a field*: the mean difference between runs that differ in it alone (same seed, too), with Student's 95 %
  interval over these pairs; seconds as a ratio (by logarithms). Where fields are ranges, such pairs don't exist, and
  PED-ANOVA (Watanabe et al. 2023) tells each field's share of what made the best tenth of the runs the best.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState
from scipy import stats

from training import plots
from training.design import LOSS, POINT, SEED, Fields, Range, Sweep, Value
from training.report import cell
from training.statistics import CONFIDENCE, Estimate, estimate

ENOUGH = 10  # runs, for PED-ANOVA: TPE's first ones are random


@dataclass(frozen=True)
class Run:
    """A finished run: what was chosen for it and what `trial.measure` found."""

    chosen: Fields
    measured: dict

    def figure(self, what: str) -> Estimate:
        """Its objective or loss."""
        return pooled([self], what)


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
    objective: tuple[float, float, float]
    loss: tuple[float, float, float]
    seconds: tuple[float, float, float]

    @property
    def label(self) -> str:
        """ "lora.r 16 → 8"."""
        return f"{self.field} {shown(self.first)} → {shown(self.second)}"


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
                found.append(effect(field, first, second, pairs, design.objective))
    return found


def effect(field: str, first: Value, second: Value, pairs: list[tuple[Run, Run]], what: str) -> Effect:
    """Of one change, over the pairs of runs that differ in it alone."""

    def change(name: str) -> tuple[float, float, float]:
        return student([b.figure(name).value - a.figure(name).value for a, b in pairs])

    ratios = student([math.log(b.measured["seconds"] / a.measured["seconds"]) for a, b in pairs])
    seconds = tuple(math.exp(value) for value in ratios)
    return Effect(field, first, second, len(pairs), change(what), change(LOSS), seconds)


def student(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of Student's interval; NaN for these where there is one difference only."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, math.nan, math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences)
    return mean, mean - float(half), mean + float(half)


def shown(value: object) -> str:
    """A field's value as the sweep file has it."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def figure_cell(found: Estimate, what: str) -> str:
    """A figure with its interval."""
    unit = "nats per token" if what == LOSS else "share"
    return cell({"unit": unit, **vars(found)})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def measured_in(runs: Sequence[Run], design: Sweep) -> list[str]:
    """The objective first, then what else was measured."""
    return [design.objective, *(name for name in runs[0].measured["values"] if name != design.objective)]


def point_table(points: Sequence[Point], front: Sequence[Point], design: Sweep) -> str:
    """The points with their means."""
    names = measured_in(points[0].runs, design)
    rows = [
        [
            *(shown(point.fields[name]) for name in design.varied), str(len(point.runs)), f"{point.mean('steps'):,.0f}",
            f"{point.mean('tokens'):,.0f}", f"{point.mean('seconds'):,.0f}",
            *(figure_cell(point.figure(name), name) for name in names), "yes" if point in front else "",
        ]
        for point in points
    ]  # fmt: skip
    return table([*design.varied, "runs", "steps", "tokens", "seconds", *names, "on the Pareto front"], rows)


def run_table(runs: Sequence[Run], design: Sweep) -> str:
    """Every finished run."""
    names = measured_in(runs, design)
    rows = [
        [
            *(shown(run.chosen[name]) for name in (*design.varied, *([SEED] if SEED not in design.varied else []))),
            f"{run.measured['steps']:,}", f"{run.measured['tokens']:,}", f"{run.measured['seconds']:,.1f}",
            *(figure_cell(run.figure(name), name) for name in names),
            f"went on from step {run.measured['began_at']}" if run.measured["began_at"] else "",
        ]
        for run in runs
    ]  # fmt: skip
    seed = [SEED] if SEED not in design.varied else []
    return table([*design.varied, *seed, "steps", "tokens", "seconds", *names, ""], rows)


def effect_table(found: Sequence[Effect], design: Sweep) -> str:
    """What each change did."""
    scale, unit = (1, "") if design.lower_is_better else (100, " points")

    def change(values: tuple[float, float, float], scale: float = 1, sign: str = "+.3g", unit: str = "") -> str:
        mean, low, high = (format(value * scale, sign) for value in values)
        return f"{mean}{unit}" if math.isnan(values[1]) else f"{mean}{unit} ({low} to {high})"

    other = [] if design.objective == LOSS else [LOSS]
    rows = [
        [
            one.label, str(one.pairs), change(one.objective, scale, unit=unit), *(change(one.loss) for _ in other),
            change(one.seconds, sign=".2f"),
        ]
        for one in found
    ]  # fmt: skip
    return table(["change", "pairs", design.objective, *other, "seconds, times"], rows)


def importance_table(study: optuna.Study) -> str:
    """PED-ANOVA's shares."""
    shares = optuna.importance.get_param_importances(study)
    return table(["field", "importance"], [[name, f"{share:.2f}"] for name, share in shares.items()])


def write_report(design: Sweep, study: optuna.Study, errors: Sequence[str], folder: Path) -> Path:
    """Write `report.md` and the charts from what the study holds, and return its path. `errors`: why runs failed."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    runs = [Run(trial.params, trial.user_attrs["measured"]) for trial in done]
    runs.sort(key=lambda run: position(run, design))
    path = folder / "report.md"
    parts = [f"# Sweep {design.name}", introduction(design, trials), *(f"Failed: {error}" for error in errors)]
    if runs:
        parts += tables(design, study, runs, folder)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def position(run: Run, design: Sweep) -> list[float]:
    """Where a run stands in the tables: as the sweep file lists the values."""
    choices = design.choices()
    names = [*design.varied, SEED] if SEED not in design.varied else design.varied
    return [choices[name].index(run.chosen[name]) if name in choices else float(run.chosen[name]) for name in names]


def introduction(design: Sweep, trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    """What was run, and what became of it."""
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    killed = sum(t.state == TrialState.FAIL and "error" not in t.user_attrs for t in trials)
    lines = [f"Recipe `{design.recipe}`" + "".join(f", {k}={shown(v)}" for k, v in design.overrides.items()) + "."]
    lines += [
        f"Point *{name}*: {', '.join(f'{k}={shown(v)}' for k, v in p.items())}." for name, p in design.points.items()
    ]
    told = [f"{counts[TrialState.COMPLETE]} runs are done"]
    told += [f"{counts[TrialState.PRUNED]} were given up by the pruner"] if counts[TrialState.PRUNED] else []
    told += [f"{killed} times a worker was killed and its run taken up again"] if killed else []
    objective = "lower is better" if design.lower_is_better else "share of right answers, leniently judged"
    lines.append(f"{', '.join(told)}. The objective is {design.objective} ({objective}).")
    devices = sorted({t.user_attrs["measured"]["device"] for t in trials if t.state == TrialState.COMPLETE})
    if devices:
        lines.append(
            f"Seconds are training's, by the clock, on {', '.join(devices)}: as noisy as the machine was busy. Steps "
            "and tokens are exact."
        )
    return "\n".join(lines)


def tables(design: Sweep, study: optuna.Study, runs: Sequence[Run], folder: Path) -> list[str]:
    """The report's parts, their charts drawn."""
    points = points_of(runs)
    front = pareto(points, design)
    label = design.objective + (" (nats per token)" if design.lower_is_better else " (share right)")
    places = [
        (", ".join(shown(p.fields[name]) for name in design.varied), p.mean("seconds"), p.figure(design.objective))
        for p in points
    ]
    plots.draw_front(places, [points.index(point) for point in front], label, folder / "time.png")
    parts = [
        "Figures have 95 % intervals over questions (of a loss: conversations), each with its mean over the seeds.",
        point_table(points, front, design),
        "![Objective against training time](time.png)",
    ]
    parts += against(design, points, folder)
    if found := effects(runs, design):
        parts += ["## Effect of each field", "Mean difference of the runs that differ in it alone, with Student's 95 % "
                  "interval over the pairs; one pair has none.", effect_table(found, design)]  # fmt: skip
        bars = [(one.label, one.objective) for one in found]
        plots.draw_effects(bars, f"change of {label}", folder / "effects.png")
        parts.append("![Effect of each field](effects.png)")
    if design.continuous and len(runs) >= ENOUGH:
        parts += ["## Importance of each field", "By PED-ANOVA: each field's share of what made the best tenth of the runs the best.",
                  importance_table(study)]  # fmt: skip
    return [*parts, "## Runs", run_table(runs, design)]


def against(design: Sweep, points: Sequence[Point], folder: Path) -> list[str]:
    """A chart of what was measured against the one field that varies, where it is a number with several values."""
    fields = [name for name in design.varied if name != POINT]
    numbers = [point.fields[name] for point in points for name in fields]
    if len(design.varied) != 1 or len(points) < 3 or not all(type(number) in (int, float) for number in numbers):
        return []
    (field,) = fields
    names = [name for name in measured_in(points[0].runs, design) if (name == LOSS) == design.lower_is_better]
    lines = {name: [(float(p.fields[field]), p.figure(name)) for p in points] for name in names}
    logarithmic = isinstance(design.fields[field], list) or (
        isinstance(design.fields[field], Range) and design.fields[field].log
    )
    unit = "nats per token" if design.lower_is_better else "share of right answers"
    plots.draw_against(lines, field, unit, folder / "field.png", logarithmic)
    return [f"![What was measured against {field}](field.png)"]
