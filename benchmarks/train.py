"""How fast does a recipe train? `python -m benchmarks.train [RECIPE …] [--steps 20]`

Each recipe's own step, as `python -m training sft` runs it, against plain TRL with the recipe's numbers (batch, length,
packing, rank) and TRL's own defaults for all else, in turns, in processes of their own. On a GPU `--shape 1b` puts a
Llama 3.2 1B of random weights in the base's place and conversations of FineTome's lengths in the data's (log-normal,
mean 450 tokens, cut at 2,048), and adds the best that this project can do.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inference.settings import PROJECT
from training.finetune.progress import flops_per_token, peak_flops
from training.recipe import Recipe, load_recipe

LLAMA_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
# 16 bits, long rows without padding, as many as fit without computing activations twice.
BEST = ["name=best", "title=Best", "method=lora", "packing=true", "batch_size=8", "gradient_accumulation=1"]


def write_base(folder: Path) -> Path:
    """A Llama 3.2 1B of random weights with the nano's tokenizer, in bfloat16 (2.5 GB)."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(PROJECT / "adapters" / "nano")
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = LlamaConfig(**LLAMA_1B, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_data(file: Path, count: int) -> Path:
    """Conversations of FineTome's lengths: one question and answer each; " a" is one token."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as rows:
        for number in range(count):
            # Of a log-normal with sigma 0.8 the mean is exp(mu + 0.32).
            length = max(16, min(2100, round(rng.lognormvariate(5.79, 0.8))))
            question = f"question {number}" + " a" * (length // 4)
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a" + " a" * (3 * length // 4)}]
            rows.write(json.dumps({"conversations": turns}) + "\n")
    return file


def plain(recipe: Recipe, out: Path) -> None:
    """TRL as its documentation shows it, with the recipe's numbers."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from training import data
    from training.data.data_card import training_template

    cuda = torch.cuda.is_available()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_location)
    tokenizer.chat_template = training_template(tokenizer)
    rows: Dataset = data.load(recipe.data).train
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            recipe.base_location, dtype=torch.bfloat16, device_map={"": 0} if cuda else "cpu",
            quantization_config=quantization if recipe.method == "qlora" else None,
        ),
        processing_class=tokenizer,
        args=SFTConfig(
            str(out), max_steps=recipe.max_steps, per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation, learning_rate=recipe.learning_rate,
            max_length=recipe.max_length, packing=recipe.packing, assistant_only_loss=True, use_cpu=not cuda,
            report_to="none", save_strategy="no", logging_steps=10, include_num_input_tokens_seen="non_padding",
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=recipe.lora.r, lora_alpha=recipe.lora.alpha, target_modules="all-linear"),
    )  # fmt: skip
    trainer.add_callback(Clock())
    trainer.train()


def ours(recipe: Recipe, out: Path) -> None:
    """The project's own training, whole."""
    from training.finetune.trainer import fine_tune

    fine_tune(recipe, out, callbacks=[Clock()])


class Clock(TrainerCallback):
    """Prints, as JSON, seconds and tokens of all steps after the first ten, and the peak of memory."""

    def __init__(self) -> None:
        self.marks: dict[int, tuple[float, int]] = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Note when the step ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks[state.global_step] = (time.perf_counter(), int(state.num_input_tokens_seen))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Print the figures."""
        steps = max(self.marks)
        first = min(10, steps // 2)
        seconds, tokens = (self.marks[steps][i] - self.marks[first][i] for i in (0, 1))
        flops = flops_per_token(kwargs["model"], args.max_length)
        memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident()
        figures = {
            "tokens_per_second": tokens / seconds, "step": seconds / (steps - first),
            "mfu": tokens / seconds * flops / peak_flops(), "memory_gb": memory / 1e9,
        }  # fmt: skip
        print("FIGURES " + json.dumps(figures), flush=True)


def peak_resident() -> int:
    """Bytes of this process at its greatest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(way: str, recipe: str, overrides: list[str]) -> dict[str, float]:
    """One way of training a recipe, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train", "--way", way, recipe, *(f"--set={o}" for o in overrides)],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not found:
        sys.exit(f"{way} {recipe} gave no figures: {done.stderr.strip()[-600:]}")
    return json.loads(found[0].removeprefix("FIGURES "))


def main(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipes to measure.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of each; the first ten aren't counted.")] = 40,
    shape: Annotated[
        str, typer.Option(help="nano: the recipe's own base; 1b: a Llama 3.2 1B of random weights.")
    ] = "nano",
    way: Annotated[str, typer.Option(hidden=True)] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value overrides of the recipes.")] = None,
) -> None:
    """Measure and print a Markdown table."""
    overrides = [*(set_ or []), f"max_steps={steps}", "checkpoints.steps=100000"]
    if way:
        (recipe,) = recipes or []
        with tempfile.TemporaryDirectory() as out:
            {"plain": plain, "ours": ours}[way](load_recipe(recipe, set_), Path(out))
        return
    with tempfile.TemporaryDirectory() as temporary:
        chosen = [(name, []) for name in recipes or ["finetome-nano", "finetome-nano-tuned"]]
        if shape == "1b":
            base, rows = write_base(Path(temporary) / "base"), write_data(Path(temporary) / "rows.jsonl", 20_000)
            overrides += [f"base={base}", f"data.name={rows}"]
            chosen = [("finetome-1b", []), ("finetome-1b-tuned", []), ("finetome-1b-tuned", BEST)]
        print("| recipe | way | tokens/s | step, s | MFU | peak memory, GB | ours / plain |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for recipe, more in chosen:
            found = {way: measure(way, recipe, [*overrides, *more]) for way in ("plain", "ours")}
            ratio = found["ours"]["tokens_per_second"] / found["plain"]["tokens_per_second"]
            for way_, f in found.items():
                cells = f"{f['tokens_per_second']:,.0f} | {f['step']:.3f} | {f['mfu']:.1%} | {f['memory_gb']:.2f}"
                label = "best" if more else recipe
                print(f"| {label} | {way_} | {cells} | {f'{ratio:.2f}' if way_ == 'ours' else ''} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
