"""How fast does a recipe train?

Each recipe's own step, as `python -m training sft` runs it, against plain TRL with the recipe's numbers (batch, length,
packing, rank) and TRL's own defaults for all else, in turns, each in a process of its own. On a CPU the recipes are
those of the nano. On a GPU a Llama 3.2 1B of random weights replaces the recipe's base, and conversations of FineTome's
lengths its data (log-normal, mean 450 tokens, cut at 2,048); the best recipe of this project is added.

`python -m benchmarks.training_speed [RECIPE…] [--set KEY=VALUE]` measures other recipes.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.report import Figure, markdown_table, run_in_own_process
from benchmarks.timed_models import write_base
from training.finetune.progress import flops_per_token, peak_flops
from training.recipe import Recipe, load_recipe

STEPS = 40  # of each; the first ten are not counted
STUDY_MICRO_BATCH = 2  # the study's, and that of Unsloth's notebooks
NANO_RECIPES = {"finetome-nano": ["finetome-nano"], "finetome-nano-tuned": ["finetome-nano-tuned"]}
# 16 bits, long rows without padding, as many as fit without computing activations twice.
BEST = ["name=best", "title=Best", "method=lora", "packing=true"]
GPU_RECIPES = {"finetome-1b": ["finetome-1b"], "finetome-1b-tuned": ["finetome-1b-tuned"],
               "best": ["finetome-1b-tuned", *BEST]}  # fmt: skip


class Speed(NamedTuple):
    """What one way of training a recipe reached."""

    tokens_per_second: float
    step_seconds: float
    mfu: float
    peak_bytes: int


class Clock(TrainerCallback):
    """Notes when each step ended. `speed` leaves out the first ten steps."""

    def __init__(self, length: int) -> None:
        self.length = length  # tokens of a row at most
        self.marks: dict[int, tuple[float, int]] = {}  # by step: seconds, tokens so far
        self.flops = 0.0  # per token

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `transformers.TrainerCallback`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks[state.global_step] = (time.perf_counter(), int(state.num_input_tokens_seen))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See `transformers.TrainerCallback`."""
        self.flops = flops_per_token(kwargs["model"], self.length)

    def speed(self) -> Speed:
        """The speed of the steps after the first ten, or of the second half of fewer than twenty."""
        last = max(self.marks)
        first = min(10, last // 2)
        seconds, tokens = (self.marks[last][i] - self.marks[first][i] for i in (0, 1))
        rate = tokens / seconds
        return Speed(rate, seconds / (last - first), rate * self.flops / peak_flops(), peak_memory())


def peak_memory() -> int:
    """Bytes of the GPU, or of this process on a CPU, at their greatest."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_data(file: Path, count: int) -> Path:
    """Write conversations of FineTome's lengths: one question and answer each; " a" is one token. Returns `file`."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as rows:
        for number in range(count):
            # Of a log-normal with sigma 0.8 the mean is exp(mu + 0.32).
            length = max(16, min(2100, round(rng.lognormvariate(5.79, 0.8))))
            question = f"question {number}" + " a" * (length // 4)
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a" + " a" * (3 * length // 4)}]
            rows.write(json.dumps({"conversations": turns}) + "\n")
    return file


def train_plain(recipe: Recipe) -> Speed:
    """TRL as its documentation shows it, with the recipe's numbers."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer, get_training_chat_template

    from training import data

    cuda, clock = torch.cuda.is_available(), Clock(recipe.max_length)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_location)
    tokenizer.chat_template = get_training_chat_template(tokenizer)
    rows: Dataset = data.load(recipe.data).train.select_columns(["messages"])
    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                recipe.base_location, dtype=torch.bfloat16, device_map={"": 0} if cuda else "cpu",
                quantization_config=quantization if recipe.method == "qlora" else None,
            ),
            processing_class=tokenizer,
            args=SFTConfig(
                out, max_steps=recipe.max_steps or -1, per_device_train_batch_size=STUDY_MICRO_BATCH,
                gradient_accumulation_steps=recipe.batch_size // STUDY_MICRO_BATCH, learning_rate=recipe.learning_rate,
                max_length=recipe.max_length, packing=recipe.packing, assistant_only_loss=True, use_cpu=not cuda,
                report_to="none", save_strategy="no", logging_steps=10, include_num_input_tokens_seen="non_padding",
            ),
            train_dataset=rows,
            peft_config=LoraConfig(r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules="all-linear"),
            callbacks=[clock],
        )  # fmt: skip
        trainer.train()
    return clock.speed()


def train_ours(recipe: Recipe) -> Speed:
    """The project's own training, from the recipe to the adapter."""
    from training.finetune.run import fine_tune

    clock = Clock(recipe.max_length)
    with tempfile.TemporaryDirectory() as out:
        fine_tune(recipe, Path(out), callbacks=[clock])
    return clock.speed()


def compare(label: str, recipe: Recipe) -> list[Figure]:
    """Train a recipe both ways."""
    plain, ours = (run_in_own_process(way, recipe) for way in (train_plain, train_ours))
    both = f"{label}: plain TRL, ours"
    return [
        Figure(f"{both}, tokens/s", f"{plain.tokens_per_second:,.0f}, {ours.tokens_per_second:,.0f}"),
        Figure(f"{both}, a step in s", f"{plain.step_seconds:.3f}, {ours.step_seconds:.3f}"),
        Figure(f"{both}, MFU", f"{plain.mfu:.1%}, {ours.mfu:.1%}"),
        Figure(f"{both}, peak memory in GB", f"{plain.peak_bytes / 1e9:.2f}, {ours.peak_bytes / 1e9:.2f}"),
        Figure(f"{label}: ours / plain TRL", f"{ours.tokens_per_second / plain.tokens_per_second:.2f}"),
    ]


def measure_recipes(recipes: dict[str, list[str]], overrides: list[str], on_1b: bool) -> list[Figure]:
    """Compare both ways for each recipe, given by label as its name and its own overrides. With `on_1b` the base and
    the data are random ones in the shape of Llama 3.2 1B and FineTome."""
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        if on_1b:
            base, rows = write_base(Path(temporary) / "base"), write_data(Path(temporary) / "rows.jsonl", 20_000)
            overrides = [*overrides, f"base={base}", f"data.name={rows}"]
        for label, (name, *own) in recipes.items():
            figures += compare(label, load_recipe(name, ["checkpoints.steps=100000", *own, *overrides]))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the recipes for this device, or with `quick` four steps of the nano's."""
    if quick:
        small = ["max_steps=4", "data.examples=64", "data.evaluation=4", "max_length=128", "warmup_steps=0"]
        return measure_recipes({"finetome-nano": ["finetome-nano"]}, small, on_1b=False)
    on_1b = torch.cuda.is_available()
    return measure_recipes(GPU_RECIPES if on_1b else NANO_RECIPES, [f"max_steps={STEPS}"], on_1b)


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes to measure.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each; the first ten are not counted.")] = STEPS,
    shape: Annotated[
        str, typer.Option(help="nano: the recipe's own base; 1b: a Llama 3.2 1B of random weights.")
    ] = "nano",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A recipe's field, as key=value.")] = None,
) -> None:
    """Measure recipes of your choice and print a table."""
    on_1b = shape == "1b"
    chosen = {name: [name] for name in recipes} if recipes else GPU_RECIPES if on_1b else NANO_RECIPES
    figures = measure_recipes(chosen, [*(overrides or []), f"max_steps={steps}"], on_1b)
    print(markdown_table(["what", "measured"], [[figure.what, figure.value] for figure in figures]))


if __name__ == "__main__":
    typer.run(main)
