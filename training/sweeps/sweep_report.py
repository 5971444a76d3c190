"""What a sweep found, as one reads it: `report.md` with its tables, and three charts beside it.

What points, front and effects are, and what their intervals mean: `findings.py`. Where fields are ranges, there are no
pairs of runs that differ in one alone, and PED-ANOVA (Watanabe et al. 2023) tells each field's share of what made the
best tenth of the runs the best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from training import plots
from training.evaluation.evaluation_report import cell, in_cell
from training.evaluation.statistics import Estimate
from training.sweeps.design import LOSS, POINT, SEED, Sweep
from training.sweeps.sweep_summary import Effect, Point, Run, effects, measured_in, pareto, points_of, position

ENOUGH = 10  # runs, for PED-ANOVA: TPE's first ones are random


def shown(value: object) -> str:
    """A field's value as the sweep file has it."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def label_of(one: Effect) -> str:
    """ "lora.r 16 → 8"."""
    return f"{one.field} {shown(one.first)} → {shown(one.second)}"


def figure_cell(found: Estimate, what: str) -> str:
    """A figure with its interval."""
    unit = "nats per token" if what == LOSS else "share"
    return cell({"unit": unit, **vars(found)})


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


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


def effect_table(found: Sequence[Effect]) -> str:
    """What each change did."""

    def shown_change(values: tuple[float, float, float], name: str) -> str:
        scale, unit, sign = {LOSS: (1, "", "+.3g"), "": (1, "", ".2f")}.get(name, (100, " points", "+.0f"))
        mean, low, high = (format(value * scale, sign) for value in values)
        return f"{mean}{unit}" if math.isnan(values[1]) else f"{mean}{unit} ({low} to {high})"

    rows = [
        [label_of(one), str(one.pairs), *(shown_change(values, name) for name, values in one.changes.items()),
         shown_change(one.seconds, "")]
        for one in found
    ]  # fmt: skip
    return table(["change", "pairs of runs", *found[0].changes, "seconds, times"], rows)


def followed(points: Sequence[Point], design: Sweep) -> list[str]:
    """How each question with the word that the sweep follows fared, at each point."""
    asked = [key for values in points[0].runs[0].measured["values"].values() for key in values]
    names = [", ".join(shown(point.fields[name]) for name in design.varied) for point in points]
    rows = []
    for question in asked:
        if design.follow and design.follow in question:
            of_point = [
                [
                    values[question]
                    for run in point.runs
                    for values in run.measured["values"].values()
                    if question in values
                ]
                for point in points
            ]
            rows.append([in_cell(question), *(f"{sum(right)} of {len(right)}" for right in of_point)])
    heading = f"## Questions about {design.follow}, right answers by {', '.join(design.varied)}"
    return [heading, table(["question", *names], rows)] if rows else []


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


def introduction(design: Sweep, trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    """What was run, and what became of it."""
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    killed = sum(t.state == TrialState.FAIL and "error" not in t.user_attrs for t in trials)
    lines = [f"Recipe `{design.recipe}`" + "".join(f", {k}={shown(v)}" for k, v in design.overrides.items()) + "."]
    lines += [
        f"Point *{name}*: {', '.join(f'{k}={shown(v)}' for k, v in p.items())}." for name, p in design.points.items()
    ]
    told = [f"Runs done: {counts[TrialState.COMPLETE]}"]
    told += [f"given up by the pruner: {counts[TrialState.PRUNED]}"] if counts[TrialState.PRUNED] else []
    told += [f"taken up again after their worker was killed: {killed}"] if killed else []
    objective = "lower is better" if design.lower_is_better else "share of right answers, leniently judged"
    lines.append(f"{'; '.join(told)}. The objective is {design.objective} ({objective}).")
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
    plots.draw_front(
        places, [points.index(point) for point in front], ", ".join(design.varied), label, folder / "time.png"
    )
    parts = [
        "Figures have 95 % intervals over questions (of a loss: conversations), each with its mean over the seeds.",
        point_table(points, front, design),
        "![Objective against training time](time.png)",
    ]
    parts += [*against(design, points, folder), *followed(points, design)]
    if found := effects(runs, design):
        parts += ["## Effect of each field", "Mean difference of the runs that differ in it alone, with Student's 95 % "
                  "interval over the pairs of runs; of one pair, over its questions.", effect_table(found)]  # fmt: skip
        bars = [(label_of(one), one.changes[design.objective]) for one in found]
        plots.draw_effects(bars, f"change of {label}", folder / "effects.png")
        parts.append("![Effect of each field](effects.png)")
    if design.continuous and len(runs) >= ENOUGH:
        by = "By PED-ANOVA: each field's share of what made the best tenth of the runs the best."
        parts += ["## Importance of each field", by, importance_table(study)]
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
    values = design.fields[field]
    logarithmic = min(numbers) > 0 and (isinstance(values, list) or values.log)
    unit = "nats per token" if design.lower_is_better else "share of right answers"
    plots.draw_against(lines, field, unit, folder / "field.png", logarithmic)
    return [f"![What was measured against {field}](field.png)"]
