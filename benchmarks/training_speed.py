"""How fast does a recipe train?

Each recipe's own step, as `python -m training sft` runs it, against plain TRL and Unsloth with the recipe's numbers
(batch, length, packing, rank) and their own defaults for all else, in turns, each in a process of its own. On a CPU
the recipes are those of the nano. On a GPU a Llama 3.2 1B of random weights replaces the recipe's base, and
conversations of FineTome's lengths its data (log-normal, mean 450 tokens, cut at 2,048). The best recipe of this
project is added, and what the card reaches in one product of two matrices.

`python -m benchmarks.training_speed [RECIPE…] [--set KEY=VALUE]` measures other recipes.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.report import Figure, figure_table, run_in_own_process
from benchmarks.timed_models import write_base
from inference.terminal import run
from training.finetune.progress import attention_length, flops_per_token, peak_flops
from training.recipe import Recipe, load_recipe

STEPS = 40  # of each; the first ten are not counted
NANO_RECIPES = {"finetome-nano": ["finetome-nano"], "finetome-nano-tuned": ["finetome-nano-tuned"]}
# 16 bits, long rows without padding, as many at once as the plan finds fastest.
BEST = ["name=best", "title=Best", "method=lora", "packing=true", "batch_size=8"]
GPU_RECIPES = {"finetome-1b": ["finetome-1b"], "finetome-1b-tuned": ["finetome-1b-tuned"],
               "best": ["finetome-1b-tuned", *BEST]}  # fmt: skip
MICRO_BATCH = 2  # of the study, for TRL and Unsloth; "best" has its whole batch at once there, too
EXPECTED = {"finetome-1b": "≥ 20,000", "finetome-1b-tuned": "≥ 45,000", "best": "≥ 80,000"}  # tokens/s on an H100
PRODUCT = 8192  # rows and columns of the matrices
ROWS = 4000  # of the made data: more than the steps take
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Speed(NamedTuple):
    """What one way of training a recipe reached."""

    tokens_per_second: float
    step_seconds: float
    mfu: float
    peak_bytes: int


class Clock(TrainerCallback):
    """Notes when each step ended. `speed` leaves out the first ten steps."""

    def __init__(self) -> None:
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
        self.flops = flops_per_token(kwargs["model"], attention_length(kwargs["train_dataloader"].dataset))

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


def others_settings(recipe: Recipe, out: str) -> dict[str, Any]:
    """The recipe's numbers for TRL's SFTConfig."""
    size = recipe.batch_size if recipe.name == "best" else min(MICRO_BATCH, recipe.batch_size)
    return {
        "output_dir": out, "max_steps": recipe.max_steps or -1, "per_device_train_batch_size": size,
        "gradient_accumulation_steps": recipe.batch_size // size, "learning_rate": recipe.learning_rate,
        "max_length": recipe.max_length, "packing": recipe.packing, "use_cpu": not torch.cuda.is_available(),
        "report_to": "none", "save_strategy": "no", "logging_steps": 10, "include_num_input_tokens_seen": "non_padding",
    }  # fmt: skip


def train_plain(recipe: Recipe) -> Speed:
    """TRL as its documentation shows it, with the recipe's numbers."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer, get_training_chat_template

    from training import data

    clock = Clock()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_location)
    tokenizer.chat_template = get_training_chat_template(tokenizer)
    with tempfile.TemporaryDirectory() as out:
        SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                recipe.base_location, dtype=torch.bfloat16, device_map={"": 0} if torch.cuda.is_available() else "cpu",
                quantization_config=quantization if recipe.method == "qlora" else None,
            ),
            processing_class=tokenizer,
            args=SFTConfig(**others_settings(recipe, out), assistant_only_loss=True),
            train_dataset=data.load(recipe.data).train.select_columns(["messages"]),
            peft_config=LoraConfig(r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules="all-linear"),
            callbacks=[clock],
        ).train()  # fmt: skip
    return clock.speed()


def train_unsloth(recipe: Recipe) -> Speed:
    """Unsloth as its notebooks show it, with the recipe's numbers, on the tokens that this project learns."""
    from unsloth import FastLanguageModel  # isort: skip  # before the others

    from trl import SFTConfig, SFTTrainer

    from training import data
    from training.data.tokens import tokenize_split

    clock = Clock()
    model, tokenizer = FastLanguageModel.from_pretrained(
        recipe.base_location, max_seq_length=recipe.max_length, load_in_4bit=recipe.method == "qlora"
    )
    model = FastLanguageModel.get_peft_model(
        model, r=recipe.lora.r, lora_alpha=recipe.lora.alpha, lora_dropout=0, use_gradient_checkpointing="unsloth",
        target_modules=[f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
    )  # fmt: skip
    rows = tokenize_split(data.load(recipe.data), tokenizer, recipe.max_length).train
    with tempfile.TemporaryDirectory() as out:
        config = SFTConfig(**others_settings(recipe, out))
        SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]).train()
    return clock.speed()


def train_ours(recipe: Recipe) -> Speed:
    """The project's own training, from the recipe to the adapter."""
    from training.finetune.run import fine_tune

    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        fine_tune(recipe, Path(out), callbacks=[clock])
    return clock.speed()


def matrix_product() -> float:
    """FLOP/s of one product of two matrices in bfloat16 on the GPU, the best of ten."""
    matrix, best = torch.ones(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16), float("inf")
    for _ in range(10):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        matrix @ matrix
        ended.record()
        torch.cuda.synchronize()
        best = min(best, started.elapsed_time(ended) / 1e3)
    return 2 * PRODUCT**3 / best


def peaks() -> tuple[float, float]:
    """FLOP/s by which MFU divides, and on a GPU those of a product of two matrices (else 0)."""
    return peak_flops(), matrix_product() if torch.cuda.is_available() else 0.0


def train_each_way(recipe: Recipe) -> tuple[dict[str, Speed], str]:
    """The speed of each way that runs here, and why another one does not, or ""."""
    ways = {"plain TRL": train_plain, "ours": train_ours}
    reason = "the package unsloth is not installed"
    if torch.cuda.is_available() and find_spec("unsloth"):
        ways["Unsloth"], reason = train_unsloth, ""
    speeds: dict[str, Speed] = {}
    for way, train in ways.items():
        try:
            speeds[way] = run_in_own_process(train, recipe)
        except Exception as error:  # of another project: the table says which
            if way == "ours":
                raise
            reason = f"{way} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return speeds, reason


def compare(label: str, recipe: Recipe) -> list[Figure]:
    """Train a recipe each way."""
    speeds, reason = train_each_way(recipe)
    peak, product = run_in_own_process(peaks)
    ours, named = speeds["ours"], f"{label}: {', '.join(speeds)}"
    figures = [
        Figure(f"{named}, tokens/s", join(f"{s.tokens_per_second:,.0f}" for s in speeds.values()), expected(label)),
        Figure(f"{named}, a step in s", join(f"{s.step_seconds:.3f}" for s in speeds.values())),
        Figure(f"{named}, MFU of {peak / 1e12:,.3g} TFLOP/s", join(f"{s.mfu:.1%}" for s in speeds.values())),
        Figure(f"{named}, peak memory in GB", join(f"{s.peak_bytes / 1e9:.2f}" for s in speeds.values())),
    ]
    if product:
        share = f"{ours.mfu * peak / product:.1%} of {product / 1e12:,.0f}"
        figures.append(Figure(f"{label}: ours, share of a product of {PRODUCT}³ in TFLOP/s", share))
        if reason:
            figures.append(Figure(f"{label}: a way that is not measured", f"{reason} (0 tokens)"))
    for way in speeds.keys() - {"ours"}:
        ratio = f"{ours.tokens_per_second / speeds[way].tokens_per_second:.2f}"
        least = "≥ 4" if (label, way) == ("finetome-1b", "Unsloth") else ""
        figures.append(Figure(f"{label}: ours / {way}", ratio, least))
    return figures


def expected(label: str) -> str:
    """What a recipe should reach on an H100."""
    return EXPECTED.get(label, "") if torch.cuda.is_available() else ""


def join(values: Iterable[str]) -> str:
    """Values of several ways in one cell."""
    return ", ".join(values)


def measure_recipes(recipes: dict[str, list[str]], overrides: list[str], on_1b: bool) -> list[Figure]:
    """Compare both ways for each recipe, given by label as its name and its own overrides. With `on_1b` the base and
    the data are random ones in the shape of Llama 3.2 1B and FineTome."""
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        if on_1b:
            base, rows = write_base(Path(temporary) / "base"), write_data(Path(temporary) / "rows.jsonl", ROWS)
            overrides = [*overrides, f"base={base}", f"data.name={rows}"]
        for label, (name, *own) in recipes.items():
            fixed = ["checkpoints.steps=100000", "report_to=[]", *own, *overrides]
            figures += compare(label, load_recipe(name, fixed))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the recipes for this device, or with `quick` four steps of the nano's."""
    if quick:
        small = ["max_steps=4", "data.examples=64", "data.evaluation=4", "max_length=128", "warmup_steps=0"]
        return measure_recipes({"finetome-nano": ["finetome-nano"]}, small, on_1b=False)
    on_1b = torch.cuda.is_available()
    return measure_recipes(GPU_RECIPES if on_1b else NANO_RECIPES, [f"max_steps={STEPS}"], on_1b)


@app.command()
def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes to measure.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each; the first ten are not counted.")] = STEPS,
    shape: Annotated[
        str, typer.Option(help="own: the recipe's own base and data; 1b: a Llama 3.2 1B of random weights; or auto.")
    ] = "auto",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A recipe's field, as key=value.")] = None,
) -> None:
    """Measure recipes of your choice, or those for this device, and print a table."""
    on_1b = torch.cuda.is_available() if shape == "auto" else shape == "1b"
    chosen = {name: [name] for name in recipes} if recipes else GPU_RECIPES if on_1b else NANO_RECIPES
    figures = measure_recipes(chosen, [*(overrides or []), f"max_steps={steps}"], on_1b)
    print(figure_table(figures))


if __name__ == "__main__":
    run(app)
