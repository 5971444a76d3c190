"""Charts as HTML and SVG in the theme's colours, with labels for screen readers: loss curves and bars of shares.

They are drawn from numbers: the page loads no pictures, and shows nothing but text from a repository.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence

from inference.run_records import Figure

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 34  # margins of the plot, for the labels of the axes
MAX_POINTS = 300


def loss_curve(points: Sequence[tuple[float, float]]) -> str:
    """Return losses (nats per token) by step as SVG. A range of more than a factor of ten gets a logarithmic scale."""
    points = thin_out(points)
    steps, losses = [x for x, _ in points], [y for _, y in points]
    logarithmic = min(losses) > 0 and max(losses) / min(losses) > 10
    scale: Callable[[float], float] = math.log10 if logarithmic else float
    ticks = powers_of_ten(losses) if logarithmic else round_numbers(0, max(*losses, 1e-9))
    low, high = scale(min(*losses, *ticks)), scale(max(*losses, *ticks))
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return TOP + (high - scale(loss)) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    grid += "".join(
        f'<text x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{t:g}</text>'
        for t in round_numbers(first, last)
    )
    path = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in points)
    summary = f"Loss {losses[0]:.3g} at step {steps[0]:g}, {losses[-1]:.3g} at step {steps[-1]:g}"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{summary}">{grid}'
        f'<polyline points="{path}"/><text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f'step{" (loss on a logarithmic scale)" if logarithmic else ""}</text></svg><p class="figures">{summary}</p>'
    )


def thin_out(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points in the order of steps: every n-th point, so that about `MAX_POINTS` remain, and the last."""
    points = sorted(points)
    every = math.ceil(len(points) / MAX_POINTS)
    return [*points[:-1:every], points[-1]]


def powers_of_ten(losses: Sequence[float]) -> list[float]:
    """Return the powers of ten around the losses; every n-th one if there are more than five."""
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))
    return [10.0**power for power in range(low, high + 1, math.ceil((high - low + 1) / 5))]


def round_numbers(low: float, high: float) -> list[float]:
    """Return about four ticks at 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def share_bars(figures: Sequence[Figure]) -> str:
    """Return table rows of shares: a bar with its interval, and the numbers."""
    return "".join(
        f'<tr><th scope="row">{html.escape(figure.group or figure.metric)}</th><td>{bar(figure)}{figure.text}</td></tr>'
        for figure in figures
    )


def bar(figure: Figure) -> str:
    """Return a bar up to the value, with a line over the interval."""
    value, low, high = (min(max(part, 0), 1) * 100 for part in (figure.value, figure.low, figure.high))
    interval = f"left:{low:.1f}%;width:{max(high - low, 0):.1f}%"
    return f'<div class="bar" aria-hidden="true"><i style="width:{value:.1f}%"></i><b style="{interval}"></b></div>'
