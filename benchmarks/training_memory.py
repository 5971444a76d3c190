"""How well does the plan of a run know the memory that it needs?

Each recipe runs as its plan says, in a process of its own: what the plan expects beside the measured peak, and
tokens/s. On a GPU the bases are of random weights in the shapes of Llama 3.2 1B and 3B, and the data conversations of
FineTome's lengths. The recipes run on the whole card, with `memory: low`, and as on a T4: 15.6 GB, float16, no
attention of variable length. On a CPU the nano runs.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.report import Figure, run_in_own_process
from benchmarks.timed_models import write_base
from benchmarks.training_speed import ROWS, Clock, peak_memory, write_data
from training.finetune.planning import cards
from training.finetune.planning.memory import RUNTIME
from training.finetune.run import fine_tune
from training.recipe import Recipe, load_recipe

STEPS = 30
SHAPE_3B = {"hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "head_dim": 128}
T4 = "as on a T4"
WAYS: dict[str, list[list[str]]] = {
    "whole card": [["finetome-1b"], ["finetome-1b-tuned"], ["finetome-1b-tuned", "method=auto"], ["finetome-3b-1000"]],
    "memory: low": [["finetome-1b", "memory=low"], ["finetome-3b-1000", "memory=low"]],
    T4: [["finetome-1b"], ["finetome-1b-tuned"], ["finetome-3b-1000"], ["emoji-1b"]],
}


class Run(NamedTuple):
    """What a run said and took: its plan in words, bytes expected and measured beside CUDA's own, and tokens/s."""

    plan: str
    expected: float
    measured: int
    tokens_per_second: float


def train(recipe: Recipe, as_on_a_t4: bool) -> Run:
    """Train a recipe by its plan."""
    if as_on_a_t4:
        be_a_t4()
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        fine_tune(recipe, Path(out), callbacks=[clock])
        plan = json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))["plan"]
    split = f"{plan['method']} {plan['micro_batch']} × {plan['gradient_accumulation']}"
    words = [split, "recomputed"] if plan["checkpointing"] else [split]
    words += [f"after {tried} ran out of memory" for tried in plan["out_of_memory"]]
    return Run(", ".join(words), plan["need"] - RUNTIME, peak_memory(), clock.speed().tokens_per_second)


def be_a_t4() -> None:
    """Give this process a T4's memory and precision. Its speed stays that of the card."""
    t4 = cards.CARDS["T4"]
    share = t4.memory / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    torch.cuda.is_bf16_supported = lambda including_emulation=True: False
    liger = cards.this_gpu().liger
    cards.this_gpu = lambda: replace(t4, liger=liger)  # type: ignore[assignment]  # a cached function is one


def measure_runs(ways: dict[str, list[list[str]]], overrides: dict[str, list[str]]) -> list[Figure]:
    """Run all recipes. `overrides` has the fields that all of them get, by the shape in their name, 1b or 3b."""
    figures = []
    for way, recipes in ways.items():
        for name, *fields in recipes:
            own = overrides["3b" if "3b" in name else "1b"]
            recipe = load_recipe(name, ["checkpoints.steps=100000", *own, *fields])
            run = run_in_own_process(train, recipe, way == T4)
            label = " ".join([name, *fields])
            figures += [
                Figure(f"{label}, {way}: expected, measured GB", f"{run.expected / 1e9:.1f}, {run.measured / 1e9:.1f}"),
                Figure(f"{label}, {way}: plan, tokens/s", f"{run.plan}, {run.tokens_per_second:,.0f}"),
            ]
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the recipes for this device, or with `quick` four steps of the nano's."""
    if quick or not torch.cuda.is_available():
        small = ["data.examples=64", "data.evaluation=4", "max_length=128", "warmup_steps=0", "report_to=[]"]
        steps = "max_steps=4" if quick else f"max_steps={STEPS}"
        return measure_runs({"whole machine": [["finetome-nano"]]}, {"1b": [steps, *small]})
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        rows = write_data(work / "rows.jsonl", ROWS)
        shared = [f"max_steps={STEPS}", f"data.name={rows}", "report_to=[]"]
        bases = {"1b": write_base(work / "1b"), "3b": write_base(work / "3b", **SHAPE_3B)}
        return measure_runs(WAYS, {shape: [*shared, f"base={base}"] for shape, base in bases.items()})
