"""The report of a sweep: `report.md` with tables, and up to three charts.

`sweep_summary.py` explains points, Pareto front, effects and intervals. If fields are ranges, no pairs of runs differ
in one field alone. Then PED-ANOVA (Watanabe et al. 2023) gives the importance of each field: its share of what
distinguishes the best tenth of the runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState

from training import plots
from training.evaluation.statistics import Estimate
from training.markdown import escape_cell, format_mean, format_share, table
from training.sweeps.design import LOSS, POINT, SEED, Sweep
from training.sweeps.sweep_summary import (
    Effect,
    Interval,
    Point,
    Run,
    effects,
    figure_names,
    group_by_point,
    pareto_front,
    table_order,
)

MIN_RUNS_FOR_IMPORTANCE = 10  # TPE's first ten runs are random


def format_value(value: object) -> str:
    """A field's value in the notation of the sweep file."""
    return value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def effect_label(one: Effect) -> str:
    """ "lora.r 16 → 8"."""
    return f"{one.field} {format_value(one.first)} → {format_value(one.second)}"


def figure_cell(estimate: Estimate, name: str) -> str:
    """A figure with its interval."""
    return (format_mean if name == LOSS else format_share)(vars(estimate))


def point_table(points: Sequence[Point], front: Sequence[Point], design: Sweep) -> str:
    """The points with the means of their runs."""
    names = figure_names(points[0].runs, design)
    rows = [
        [
            *(format_value(point.fields[name]) for name in design.varied), str(len(point.runs)),
            f"{point.mean('steps'):,.0f}", f"{point.mean('tokens'):,.0f}", f"{point.mean('seconds'):,.0f}",
            *(figure_cell(point.figure(name), name) for name in names), "yes" if point in front else "",
        ]
        for point in points
    ]  # fmt: skip
    return table([*design.varied, "runs", "steps", "tokens", "seconds", *names, "on the Pareto front"], rows)


def run_table(runs: Sequence[Run], design: Sweep) -> str:
    """Every finished run."""
    names = figure_names(runs, design)
    fields = [*design.varied, *([SEED] if SEED not in design.varied else [])]
    rows = [
        [
            *(format_value(run.chosen[name]) for name in fields),
            f"{run.measured['steps']:,}", f"{run.measured['tokens']:,}", f"{run.measured['seconds']:,.1f}",
            *(figure_cell(run.figure(name), name) for name in names),
            f"resumed from step {run.measured['began_at']}" if run.measured["began_at"] else "",
        ]
        for run in runs
    ]  # fmt: skip
    return table([*fields, "steps", "tokens", "seconds", *names, ""], rows)


def effect_table(found: Sequence[Effect]) -> str:
    """The effects of all changes."""

    def format_change(values: Interval, name: str) -> str:
        scale, unit, sign = {LOSS: (1, "", "+.3g"), "": (1, "", ".2f")}.get(name, (100, " points", "+.0f"))
        mean, low, high = (format(value * scale, sign) for value in values)
        return f"{mean}{unit}" if math.isnan(values[1]) else f"{mean}{unit} ({low} to {high})"

    rows = [
        [effect_label(one), str(one.pairs), *(format_change(values, name) for name, values in one.changes.items()),
         format_change(one.seconds, "")]
        for one in found
    ]  # fmt: skip
    return table(["change", "pairs of runs", *found[0].changes, "seconds, times"], rows)


def follow_section(points: Sequence[Point], design: Sweep) -> list[str]:
    """For each question with the sweep's `follow` word: how many runs of each point answer it right."""
    asked = [key for values in points[0].runs[0].measured["values"].values() for key in values]
    names = [", ".join(format_value(point.fields[name]) for name in design.varied) for point in points]
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
            rows.append([escape_cell(question), *(f"{sum(right)} of {len(right)}" for right in of_point)])
    heading = f"## Questions about {design.follow}, right answers by {', '.join(design.varied)}"
    return [heading, table(["question", *names], rows)] if rows else []


def importance_table(study: optuna.Study) -> str:
    """The importance of each field by PED-ANOVA."""
    shares = optuna.importance.get_param_importances(study)
    return table(["field", "importance"], [[name, f"{share:.2f}"] for name, share in shares.items()])


def write_report(design: Sweep, study: optuna.Study, errors: Sequence[str], folder: Path) -> Path:
    """Write `report.md` and the charts into `folder` and return the report's path. `errors` are of failed runs."""
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    runs = [Run(trial.params, trial.user_attrs["measured"]) for trial in done]
    runs.sort(key=lambda run: table_order(run, design))
    path = folder / "report.md"
    parts = [f"# Sweep {design.name}", introduction(design, trials), *(f"Failed: {error}" for error in errors)]
    if runs:
        parts += tables(design, study, runs, folder)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def introduction(design: Sweep, trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    """The design, and how many runs are finished."""
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    killed = sum(t.state == TrialState.FAIL and "error" not in t.user_attrs for t in trials)
    lines = [
        f"Recipe `{design.recipe}`" + "".join(f", {k}={format_value(v)}" for k, v in design.overrides.items()) + "."
    ]
    lines += [
        f"Point *{name}*: {', '.join(f'{k}={format_value(v)}' for k, v in p.items())}."
        for name, p in design.points.items()
    ]
    states = [f"Finished runs: {counts[TrialState.COMPLETE]}"]
    states += [f"stopped by the pruner: {counts[TrialState.PRUNED]}"] if counts[TrialState.PRUNED] else []
    states += [f"resumed after their worker was killed: {killed}"] if killed else []
    objective = "lower is better" if design.lower_is_better else "share of right answers, lenient score"
    lines.append(f"{'; '.join(states)}. The objective is {design.objective} ({objective}).")
    devices = sorted({t.user_attrs["measured"]["device"] for t in trials if t.state == TrialState.COMPLETE})
    if devices:
        lines.append(
            f"Seconds are wall-clock time of training on {', '.join(devices)}; they vary with the load of the machine. "
            "Steps and tokens are exact."
        )
    return "\n".join(lines)


def tables(design: Sweep, study: optuna.Study, runs: Sequence[Run], folder: Path) -> list[str]:
    """The report's sections. Draws their charts."""
    points = group_by_point(runs)
    front = pareto_front(points, design)
    label = design.objective + (" (nats per token)" if design.lower_is_better else " (share right)")
    dots = [
        (
            ", ".join(format_value(p.fields[name]) for name in design.varied),
            p.mean("seconds"),
            p.figure(design.objective),
        )
        for p in points
    ]
    plots.draw_front(
        dots, [points.index(point) for point in front], ", ".join(design.varied), label, folder / "time.png"
    )
    parts = [
        "Figures have 95 % intervals over questions (of a loss: conversations), each counted with its mean over the "
        "seeds.",
        point_table(points, front, design),
        "![Objective against training time](time.png)",
    ]
    parts += [*field_chart(design, points, folder), *follow_section(points, design)]
    if found := effects(runs, design):
        explanation = (
            "Mean difference of the runs that differ in this field alone, with Student's 95 % interval over the pairs "
            "of runs. For a single pair: over its questions."
        )
        parts += ["## Effect of each field", explanation, effect_table(found)]
        bars = [(effect_label(one), one.changes[design.objective]) for one in found]
        plots.draw_effects(bars, f"change of {label}", folder / "effects.png")
        parts.append("![Effect of each field](effects.png)")
    if design.continuous and len(runs) >= MIN_RUNS_FOR_IMPORTANCE:
        by = "By PED-ANOVA: each field's share of what distinguishes the best tenth of the runs."
        parts += ["## Importance of each field", by, importance_table(study)]
    return [*parts, "## Runs", run_table(runs, design)]


def field_chart(design: Sweep, points: Sequence[Point], folder: Path) -> list[str]:
    """A chart of the figures against the field that varies, if it is a single field with three or more numbers."""
    if len(points) < 3 or len(design.varied) != 1 or POINT in design.varied:
        return []
    (field,) = design.varied
    numbers = [v for point in points if isinstance(v := point.fields[field], int | float) and not isinstance(v, bool)]
    if len(numbers) < len(points):
        return []
    names = [name for name in figure_names(points[0].runs, design) if (name == LOSS) == design.lower_is_better]
    lines = {name: [(x, p.figure(name)) for x, p in zip(numbers, points, strict=True)] for name in names}
    values = design.fields[field]
    logarithmic = min(numbers) > 0 and (isinstance(values, list) or values.log)
    unit = "nats per token" if design.lower_is_better else "share of right answers"
    plots.draw_against(lines, field, unit, folder / "field.png", logarithmic)
    return [f"![Figures against {field}](field.png)"]
