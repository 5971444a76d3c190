"""A curve over strengths as Markdown and as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training.evaluation.statistics import Estimate
from training.evaluation.strengths.strength_curve import Curve
from training.markdown import format_mean, format_share, table

CHART = "strengths.png"


def curve_text(suite: str, curve: Curve) -> str:
    """A curve as Markdown: the best strength, and a table."""
    loss = curve["metric"] == "loss"
    metric, format_value = ("loss (nats per token)", format_mean) if loss else ("right answers", format_share)
    rows = [
        [f"{p['strength']:g}", share_of(p["learnt"]), share_of(p["forgotten"]), format_value(p["value"])]
        for p in curve["points"]
    ]
    figures = table(["strength", "learnt", "forgotten", metric], rows)
    return "\n\n".join([f"## Strengths ({suite})", best_text(curve), figures])


def best_text(curve: Curve) -> str:
    """One sentence: the best strength, and whether it differs from 1."""
    if curve["best"] == 1:
        return "Best strength: 1, as it was trained."
    told = "is better than" if curve["p"] < 0.05 else "cannot be told apart from"
    return f"Best strength: {curve['best']:g}. It {told} strength 1 (p = {curve['p']:.2g}, the best of several chosen)."


def share_of(row: Mapping[str, float] | None) -> str:
    """A share with its interval; "none" without questions."""
    return format_share(row) if row else "none"


def draw_curves(curves: Mapping[str, Curve], out: Path) -> None:
    """Draw the shares against the strength, one line for learnt and one for forgotten of each suite."""
    from training.plots import draw_against

    lines = {
        f"{suite}: {name}": [
            (point["strength"], Estimate(**point[name])) for point in curve["points"] if point[name] is not None
        ]
        for suite, curve in curves.items()
        for name in ("learnt", "forgotten")
    }
    shown = {name: points for name, points in lines.items() if points}
    draw_against(shown, "strength of the adapter", "share of questions, with 95 % intervals", out, logarithmic=False)
