"""What an adapter teaches and what it makes the base forget, at several strengths.

Each strength is compared with strength 0, which is the base, on the same questions.

- *learnt*: of the questions that the base answers wrong, the share that is answered right.
- *forgotten*: of the questions that the base answers right, the share that is answered wrong.
- The chat suite has no right answers. There, learnt is the share of conversations whose answers become likelier than
  under the base, and forgotten the share of those that become less likely.

The best strength has most right answers, or the lowest held-out loss; of equal ones, the one nearest to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inference.engines import MAX_STRENGTH, ModelFiles
from inference.errors import LabError
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.run_suite import run_suite
from training.evaluation.statistics import compare, estimate
from training.evaluation.suites import Result, Suite

# {"metric", "best", "p", "points": [{"strength", "value", "learnt", "forgotten"}]}: JSON's types only.
Curve = dict[str, Any]
Outcomes = Mapping[str, bool] | Mapping[str, float]  # by question: right or wrong, or nats


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths in "0,0.25,1", with 0 and 1, in ascending order. Raises LabError for anything else."""
    try:
        found = {float(part) for part in text.split(",")}
    except ValueError:
        found = {-1.0}
    if not all(0 <= strength <= MAX_STRENGTH for strength in found):
        raise LabError(f"“{text}” can't be strengths: use numbers from 0 to {MAX_STRENGTH} with commas.")
    return tuple(sorted({0.0, 1.0, *found}))


def check_strengths_apply(models: Sequence[ResolvedModel], suites: Sequence[Suite]) -> None:
    """Raise LabError unless each model has an adapter on this disk, and there is a suite to ask."""
    if not suites:
        raise LabError("Strengths are compared on a suite: add --suite emoji or --suite chat.")
    for model in models:
        if not isinstance(model.model, ModelFiles) or model.model.adapter is None:
            raise LabError(f"{model.name} has no adapter here whose strength can change: leave out --strengths.")


def measure_curve(
    suite: Suite, model: ResolvedModel, strengths: Sequence[float], out: Path, every: int, again: bool
) -> Curve:
    """Ask a suite at each strength. Arguments as for `run_suite`. Raises LabError if the model stops answering."""
    results = {s: run_suite(suite, model.at_strength(s), out, every, again and s != 1) for s in strengths}
    return curve_of(results)


def curve_of(results: Mapping[float, Result]) -> Curve:
    """The curve of the results by strength, 0 and 1 among them."""
    metric, weights = metric_of(results[0.0])
    outcomes = {strength: outcomes_of(result) for strength, result in results.items()}
    base = outcomes[0.0]
    means = {strength: estimate(list(values.values()), weights) for strength, values in outcomes.items()}
    sign = -1 if metric == "loss" else 1
    best = max(means, key=lambda strength: (sign * means[strength].value, -abs(strength - 1)))
    points = []
    for strength, values in outcomes.items():
        learnt, forgotten = changes(base, values)
        points.append({
            "strength": strength, "value": asdict(means[strength]), "learnt": share(learnt),
            "forgotten": share(forgotten),
        })  # fmt: skip
    p = compare(list(outcomes[1.0].values()), list(outcomes[best].values()), weights).p if best != 1 else 1.0
    return {"metric": metric, "best": best, "p": p, "points": points}


def metric_of(result: Result) -> tuple[str, list[float] | None]:
    """The metric that is compared, and the weights of a loss. Raises LabError if a suite has none."""
    loss = next((measure for measure in result.measures if measure.metric == "loss"), None)
    if loss:
        return "loss", list((loss.weights or {}).values())
    return "right answers", None


def outcomes_of(result: Result) -> Outcomes:
    """The lenient scores of all groups by question, or the loss of each conversation."""
    loss = next((measure for measure in result.measures if measure.metric == "loss"), None)
    if loss:
        return {key: float(nats) for key, nats in loss.values.items()}
    scores = [measure for measure in result.measures if measure.metric == "lenient" and measure.compared]
    return {key: bool(right) for measure in scores for key, right in measure.values.items()}


def changes(base: Outcomes, now: Outcomes) -> tuple[list[bool], list[bool]]:
    """For each question that can be learnt, whether it is; and for each that can be forgotten, whether it is."""
    if all(isinstance(value, bool) for value in base.values()):
        learnt = [bool(now[key]) for key, right in base.items() if not right]
        return learnt, [not now[key] for key, right in base.items() if right]
    return [now[key] < nats for key, nats in base.items()], [now[key] > nats for key, nats in base.items()]


def share(values: Sequence[bool]) -> dict[str, float] | None:
    """The share of True with its interval; None without values."""
    return asdict(estimate(values)) if values else None
