"""Draws the pictures of model cards and reports with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.evaluation.statistics import Estimate

NAMED = 12  # points that a legend names at most
Bars = Mapping[str, tuple[float, float, float]]  # name → height, lower and upper end of the interval


def plain(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; `width` and `height` are in hundreds of pixels."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_loss(curves: dict[str, list[tuple[int, float]]], out: Path, unit: str = "nats per token") -> None:
    """Draw loss against optimizer steps, one line per run; a PNG of 640 × 360."""
    figure, axes = plain(6.4, 3.6)
    for name, losses in curves.items():
        axes.plot([step for step, _ in losses], [loss for _, loss in losses], label=name, linewidth=1.5)
    axes.set(xlabel="step", ylabel=f"loss ({unit})", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Software": None})


def draw_bars(panels: Mapping[str, Mapping[str, Bars]], out: Path) -> None:
    """Draw a panel of bars with intervals for each title, with the models' bars side by side; a PNG 800 wide."""
    figure = Figure(figsize=(8, 2.4 * len(panels) + 0.4), dpi=100, layout="constrained")
    for axes, (title, models) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        names = list(dict.fromkeys(name for bars in models.values() for name in bars))
        width = 0.8 / len(models)
        for number, (model, bars) in enumerate(models.items()):
            shown = [name for name in names if name in bars]
            positions = [names.index(name) + (number - (len(models) - 1) / 2) * width for name in shown]
            heights = [bars[name][0] for name in shown]
            # An interval may miss its height by rounding, because another method computes it.
            ends = [
                [max(bars[name][0] - bars[name][1], 0) for name in shown],
                [max(bars[name][2] - bars[name][0], 0) for name in shown],
            ]
            axes.bar(positions, heights, width * 0.92, label=model, yerr=ends, capsize=3, error_kw={"linewidth": 1})
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(out, metadata={"Software": None})


def draw_front(
    points: Sequence[tuple[str, float, Estimate]], front: Sequence[int], fields: str, label: str, out: Path
) -> None:
    """Draw points (name, training time in seconds, measured value with its interval); a PNG of 800 × 420.

    A line joins the points of the Pareto front, given as indices of `points`. `fields` is the legend's title. If there
    are many points, the legend names only those of the front.
    """
    figure, axes = plain(8, 4.2)
    times, values = [points[number][1] for number in front], [points[number][2].value for number in front]
    axes.plot(times, values, "--", color="gray", linewidth=1, label="Pareto front")
    for number, (name, seconds, value) in enumerate(points):
        named = number in front or len(points) <= NAMED
        ends = [[max(value.value - value.low, 0)], [max(value.high - value.value, 0)]]
        axes.errorbar(
            [seconds], [value.value], ends, capsize=3, linewidth=1, label=name if named else None,
            color=f"C{number % 10}" if named else "lightgray", marker="os^D"[number // 10 % 4],
        )  # fmt: skip
    axes.set(xlabel="training time (s)", ylabel=label)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7, title=fields, title_fontsize=7)
    figure.savefig(out, metadata={"Software": None})


def draw_effects(bars: Sequence[tuple[str, tuple[float, float, float]]], label: str, out: Path) -> None:
    """Draw changes around 0 with the ends of their intervals (NaN: no interval), one per row; a PNG 720 wide."""
    figure, axes = plain(7.2, 0.45 * len(bars) + 1.2)
    rows = range(len(bars))[::-1]
    for row, (_, (mean, low, high)) in zip(rows, bars, strict=True):
        axes.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(rows, [name for name, _ in bars], fontsize=8)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set(xlabel=label)
    figure.savefig(out, metadata={"Software": None})


def draw_against(
    lines: Mapping[str, Sequence[tuple[float, Estimate]]], field: str, label: str, out: Path, logarithmic: bool
) -> None:
    """Draw measured values with their intervals against a field's values, one line each; a PNG of 720 × 420."""
    figure, axes = plain(7.2, 4.2)
    for name, points in lines.items():
        points = sorted(points, key=lambda point: point[0])
        ends = [[max(p.value - p.low, 0) for _, p in points], [max(p.high - p.value, 0) for _, p in points]]
        axes.errorbar([x for x, _ in points], [p.value for _, p in points], yerr=ends, fmt="o-", capsize=3, label=name)
    values = sorted({x for points in lines.values() for x, _ in points})
    axes.set(xlabel=field, ylabel=label, xscale="log" if logarithmic else "linear")
    if logarithmic:
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(out, metadata={"Software": None})
