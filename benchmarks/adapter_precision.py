"""How much of a run is lost if the adapter and its optimizer's moments are bfloat16 instead of float32?

TRL makes the adapter of a 4-bit base bfloat16, PEFT makes every other one float32. The same run is trained both ways
at several learning rates. Of A, the half of the adapter that starts with random values, the benchmark reports the share
of values that never moved, and how far the values moved compared with float32; of the whole adapter, the error of the
update of the base's weights; and the held-out loss. On a GPU it also reports the speed.

`python -m benchmarks.adapter_precision [--recipe NAME] [--set KEY=VALUE]` measures another recipe.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.report import Figure, figure_table, run_in_own_process
from inference.terminal import run
from training.recipe import Recipe, load_recipe

RATES = (1e-5, 5e-5, 2e-4, 3e-3)  # low ones, the usual one of a 1B, and the nano's
STEPS = 60
Weights = dict[str, torch.Tensor]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Outcome(NamedTuple):
    """What a run reached: the weights of the adapter before and after, the held-out loss in nats, tokens/s."""

    before: Weights
    after: Weights
    loss: float
    tokens_per_second: float


class HoldIn(TrainerCallback):
    """Holds the adapter in a dtype from the first step on, and keeps its first and last values."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.before, self.after = dtype, Weights(), Weights()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`. The optimizer makes its moments later, in the weights' dtype."""
        for weight in kwargs["model"].parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(self.dtype)
        self.before = trained(kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        self.after = trained(kwargs["model"])


def trained(model: torch.nn.Module) -> Weights:
    """A copy of the trained weights in float32."""
    return {name: weight.detach().float().cpu().clone() for name, weight in model.named_parameters()
            if weight.requires_grad}  # fmt: skip


def train(recipe: Recipe, dtype: torch.dtype) -> Outcome:
    """Train a recipe with an adapter of that dtype."""
    from training.finetune.run import fine_tune

    held = HoldIn(dtype)
    with tempfile.TemporaryDirectory() as folder:
        run_record = json.loads((fine_tune(recipe, Path(folder), callbacks=[held]) / "run.json").read_text())
    speed = run_record["tokens"] / run_record["seconds"]
    return Outcome(held.before, held.after, run_record["validation"]["losses"][-1][1], speed)


def moved(outcome: Outcome) -> torch.Tensor:
    """How far each value of all A matrices moved."""
    names = [name for name in outcome.before if ".lora_A." in name]
    return torch.cat([(outcome.after[name] - outcome.before[name]).flatten() for name in names])


def update_error(rounded: Outcome, exact: Outcome) -> float:
    """The difference between two updates of the base's weights (B A), relative to the exact one's norm."""
    squares = torch.zeros(2)
    for name, a in exact.after.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            update = exact.after[other] @ a
            difference = rounded.after[other] @ rounded.after[name] - update
            squares += torch.stack([difference.square().sum(), update.square().sum()])
    return float((squares[0] / squares[1]).sqrt())


def compare(recipe: Recipe) -> list[Figure]:
    """Train a recipe both ways."""
    rounded, exact = (run_in_own_process(train, recipe, dtype) for dtype in (torch.bfloat16, torch.float32))
    steps, full = moved(rounded), moved(exact)
    label = f"learning rate {recipe.learning_rate:g}"
    figures = [
        Figure(f"{label}: values of A that never moved, bfloat16", f"{(steps == 0).float().mean():.0%}"),
        Figure(f"{label}: values of A that never moved, float32", f"{(full == 0).float().mean():.0%}"),
        Figure(f"{label}: movement of A in bfloat16 / in float32", f"{steps.norm() / full.norm():.2f}"),
        Figure(f"{label}: error of the update of the weights", f"{update_error(rounded, exact):.0%}"),
        Figure(f"{label}: held-out loss, bfloat16 and float32", f"{rounded.loss:.4f}, {exact.loss:.4f}"),
    ]
    if torch.cuda.is_available():
        speeds = f"{rounded.tokens_per_second:,.0f}, {exact.tokens_per_second:,.0f}"
        figures.append(Figure(f"{label}: tokens/s, bfloat16 and float32", speeds))
    return figures


def measure_rates(name: str, overrides: list[str], rates: tuple[float, ...]) -> list[Figure]:
    """Compare both ways at each learning rate."""
    fixed = ["checkpoints.steps=100000", "report_to=[]", "data.validation=64", "validation.best=false",
             "validation.steps=100000", "validation.samples=0"]  # fmt: skip
    figures = []
    for rate in rates:
        figures += compare(load_recipe(name, [*fixed, f"learning_rate={rate}", *overrides]))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the nano, or with `quick` two steps of it."""
    if quick:
        small = ["max_steps=2", "data.examples=32", "data.evaluation=4", "data.validation=4", "warmup_steps=0"]
        return measure_rates("emoji-nano", small, (2e-4,))
    return measure_rates("emoji-nano", [f"max_steps={STEPS}", "warmup_steps=5"], RATES)


@app.command()
def main(
    recipe: Annotated[str, typer.Option(help="The recipe to train.")] = "emoji-nano",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = STEPS,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A recipe's field, as key=value.")] = None,
) -> None:
    """Measure a recipe of your choice and print a table."""
    figures = measure_rates(recipe, [f"max_steps={steps}", "warmup_steps=5", *(overrides or [])], RATES)
    print(figure_table(figures))


if __name__ == "__main__":
    run(app)
