"""Pictures for model cards, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


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
