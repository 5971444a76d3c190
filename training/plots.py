"""Pictures for model cards and reports, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.evaluation.statistics import Estimate

NAMED = 12  # points that a legend may name
Bars = Mapping[str, tuple[float, float, float]]  # a bar's name: its height and the ends of its interval


def plain(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of so many hundred pixels with one pair of axes."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_loss(curves: dict[str, list[tuple[int, float]]], out: Path) -> None:
    """Loss (nats per token) against optimizer steps, one line a run, as a PNG of 640 × 360."""
    figure, axes = plain(6.4, 3.6)
    for name, losses in curves.items():
        axes.plot([step for step, _ in losses], [loss for _, loss in losses], label=name, linewidth=1.5)
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(out, metadata={"Software": None})


def draw_bars(panels: Mapping[str, Mapping[str, Bars]], out: Path) -> None:
    """Panels of bars with intervals, below each other: in each the models' bars side by side, as a PNG 800 wide."""
    figure = Figure(figsize=(8, 2.4 * len(panels) + 0.4), dpi=100, layout="constrained")
    for axes, (title, models) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        names = list(dict.fromkeys(name for bars in models.values() for name in bars))
        width = 0.8 / len(models)
        for number, (model, bars) in enumerate(models.items()):
            shown = [name for name in names if name in bars]
            places = [names.index(name) + (number - (len(models) - 1) / 2) * width for name in shown]
            heights = [bars[name][0] for name in shown]
            # An interval by another method than the height's may end a hair beside it.
            ends = [
                [max(bars[name][0] - bars[name][1], 0) for name in shown],
                [max(bars[name][2] - bars[name][0], 0) for name in shown],
            ]
            axes.bar(places, heights, width * 0.92, label=model, yerr=ends, capsize=3, error_kw={"linewidth": 1})
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
    """Points, named by `fields`, by training time (seconds) and figure with its interval, as a PNG of 800 × 420. Those
    of the Pareto front (places in `points`, by time) are joined. Where there are many, only these have their names."""
    figure, axes = plain(8, 4.2)
    joined = ([points[number][1] for number in front], [points[number][2].value for number in front])
    axes.plot(*joined, "--", color="gray", linewidth=1, label="Pareto front")
    for number, (name, seconds, found) in enumerate(points):
        named = number in front or len(points) <= NAMED
        ends = [[max(found.value - found.low, 0)], [max(found.high - found.value, 0)]]
        look = {"color": f"C{number % 10}" if named else "lightgray", "marker": "os^D"[number // 10 % 4]}
        axes.errorbar([seconds], [found.value], ends, capsize=3, linewidth=1, label=name if named else None, **look)
    axes.set(xlabel="training time (s)", ylabel=label)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7, title=fields, title_fontsize=7)
    figure.savefig(out, metadata={"Software": None})


def draw_effects(bars: Sequence[tuple[str, tuple[float, float, float]]], label: str, out: Path) -> None:
    """Changes with the ends of their intervals (NaN: none), below each other around 0, as a PNG 720 wide."""
    figure, axes = plain(7.2, 0.45 * len(bars) + 1.2)
    places = range(len(bars))[::-1]
    for place, (_, (mean, low, high)) in zip(places, bars, strict=True):
        axes.errorbar([mean], [place], xerr=[[mean - low], [high - mean]], fmt="o", color="C0", capsize=3)
    axes.axvline(0, color="gray", linewidth=1)
    axes.set_yticks(places, [name for name, _ in bars], fontsize=8)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set(xlabel=label)
    figure.savefig(out, metadata={"Software": None})


def draw_against(
    lines: Mapping[str, Sequence[tuple[float, Estimate]]], field: str, label: str, out: Path, logarithmic: bool
) -> None:
    """Figures with their intervals against a field's values, a line each, as a PNG of 720 × 420."""
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
