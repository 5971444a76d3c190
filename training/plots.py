"""Pictures for model cards, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

Bars = Mapping[str, tuple[float, float, float]]  # a bar's name: its height and the ends of its interval


def draw_loss(curves: dict[str, list[tuple[int, float]]], out: Path) -> None:
    """Loss (nats per token) against optimizer steps, one line a run, as a PNG of 640 × 360."""
    figure = Figure(figsize=(6.4, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, losses in curves.items():
        axes.plot([step for step, _ in losses], [loss for _, loss in losses], label=name, linewidth=1.5)
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
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
