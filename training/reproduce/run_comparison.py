"""Two runs of one recipe compared: their weights, their losses in training, and their figures on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.reproduce.original import Original
from training.run_record import Fields, read_run_record

Verdict = Literal["same bits", "same figures", "other figures", "other bits"]


@dataclass(frozen=True)
class Outcome:
    """What a second training gave.

    Attributes:
        weights: {"equal", "largest", "relative"}: whether all bits are equal, the largest difference of a weight, and
            the norm of the difference over the norm of the original.
        losses: {"first_different_step", "last": [there, here]}, of the losses that training logged.
        figures: for each metric its unit, both values with 95 % intervals, and the paired difference.
    """

    verdict: Verdict
    weights: Fields
    losses: Fields = field(default_factory=dict)
    figures: list[Fields] = field(default_factory=list)


def compare_runs(original: Original, again: Path) -> Outcome:
    """Compare the original with the run that was trained again. Equal bits need no figures. Raises LabError if the data
    or the base is not available."""
    weights = compare_weights(original.folder, again)
    losses = compare_losses(original.record.get("losses") or [], read_run_record(again)["losses"])
    if weights["equal"]:
        return Outcome("same bits", weights, losses)
    figures = compare_figures(original, again)
    if not figures:
        return Outcome("other bits", weights, losses)
    inside = all(row["there"]["low"] <= row["here"]["value"] <= row["there"]["high"] for row in figures)
    return Outcome("same figures" if inside else "other figures", weights, losses, figures)


def compare_weights(original: Path, again: Path) -> Fields:
    """How the weights differ, tensor by tensor; see `Outcome`."""
    import torch

    there, here = read_weights(original), read_weights(again)
    if there.keys() != here.keys() or any(there[name].shape != here[name].shape for name in there):
        return {"equal": False, "largest": None, "relative": None}
    equal = all(there[name].dtype == here[name].dtype and torch.equal(there[name], here[name]) for name in there)
    differences = [(there[name].double() - here[name].double()) for name in there]
    squares = sum(float(difference.square().sum()) for difference in differences)
    size = sum(float(weight.double().square().sum()) for weight in there.values())
    largest = max(float(difference.abs().max()) for difference in differences)
    return {"equal": equal, "largest": largest, "relative": (squares / size) ** 0.5 if size else 0.0}


def read_weights(folder: Path) -> dict[str, Any]:
    """The tensors of an adapter, or of a complete model."""
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    files = [adapter] if adapter.is_file() else sorted(folder.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def compare_losses(there: list[list[float]], here: list[list[float]]) -> Fields:
    """Where the losses of training differ first; None if they are all equal."""
    pairs = list(zip(there, here, strict=False))
    different = next((int(a[0]) for a, b in pairs if list(a) != list(b)), None)
    return {"first_different_step": different, "last": [there[-1][1], here[-1][1]] if pairs else []}


def compare_figures(original: Original, again: Path) -> list[Fields]:
    """The metrics of both on the held-out rows, computed here in the same way. Empty if fewer than two rows are held
    out."""
    from training import data
    from training.evaluation.before_after import compare_losses as compare_measured
    from training.evaluation.before_after import measure
    from training.evaluation.conversation_loss import load_for_scoring
    from training.evaluation.held_out import read_held_out

    recipe = original.recipe
    if not recipe.data.evaluation:
        return []
    tokenizer, rows = read_held_out(data.load(recipe.data).evaluation, recipe)
    rows = [row for row in rows if row.learnt]
    if len(rows) < 2:
        return []
    there, here = (measure(load_for_scoring(folder), tokenizer, rows) for folder in (original.folder, again))
    return [
        {"metric": row["metric"], "unit": row["unit"], "there": row["base"], "here": row["fine_tuned"],
         "difference": row["difference"]}
        for row in compare_measured(there, here)["rows"] if row["metric"] != "margin"  # it is relative to `there`
    ]  # fmt: skip
