"""A curve over strengths as Markdown and as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from training.evaluation.statistics import Estimate
from training.evaluation.strengths.strength_curve import Curve

CHART = "strengths.png"


def curve_text(suite: str, curve: Curve) -> str:
    """A curve as Markdown: the best strength, and a table."""
    loss = curve["metric"] == "loss"
    lines = [f"| strength | learnt | forgotten | {'loss (nats per token)' if loss else 'right answers'} |"]
    lines.append("|---|---|---|---|")
    for point in curve["points"]:
        value = format_loss(point["value"]) if loss else format_share(point["value"])
        cells = (f"{point['strength']:g}", format_share(point["learnt"]), format_share(point["forgotten"]), value)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"## Strengths ({suite})", "", best_text(curve), "", *lines])


def best_text(curve: Curve) -> str:
    """One sentence: the best strength, and whether it differs from 1."""
    if curve["best"] == 1:
        return "Best strength: 1, as it was trained."
    told = "is better than" if curve["p"] < 0.05 else "cannot be told apart from"
    return f"Best strength: {curve['best']:g}. It {told} strength 1 (p = {curve['p']:.2g}, the best of several chosen)."


def format_share(row: Mapping[str, float] | None) -> str:
    """ "97 % (95–98, n = 496)"; "none" without questions."""
    if row is None:
        return "none"
    return f"{row['value'] * 100:.0f} % ({row['low'] * 100:.0f}–{row['high'] * 100:.0f}, n = {row['count']})"


def format_loss(row: Mapping[str, float]) -> str:
    """ "0.0603 (0.0478–0.0793, n = 200)"."""
    return f"{row['value']:.4g} ({row['low']:.4g}–{row['high']:.4g}, n = {row['count']})"


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
