"""How much faster do several cards train than one?

The best recipe (16-bit LoRA, packed) runs as `python -m training sft` on one card, and on 2 and 4 of them: under DDP,
which the command chooses itself if the model fits each card, and under FSDP for LoRA and for all weights. Each run must
end and leave its files. Speed is that of the last ten steps, from the run's own progress bar.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.report import Figure, Unavailable
from benchmarks.timed_models import write_base
from benchmarks.training_speed import BEST, ROWS, write_data
from inference.settings import PROJECT

STEPS = 40
LIMIT = 900  # seconds of a run
BATCH = 8  # conversations of a step on each card
SMALL = ["data.examples=32", "data.evaluation=4", "max_length=64", "warmup_steps=0", "max_steps=4"]
EXPECTED = {2: "≥ 1.9", 4: "≥ 3.7"}  # times one card, under DDP


def train(recipe: list[str], cards: int, fsdp: bool, out: Path) -> float:
    """Train in processes of their own. Returns tokens/s. Raises RuntimeError if it fails, hangs or leaves no files."""
    module = ["training", "sft", *recipe, "report_to=[]", "trl.logging_steps=2", "--out", str(out)]
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "training/fsdp.yaml",
        "--num_processes",
        str(cards),
    ]
    command = [sys.executable, *(launcher if fsdp else []), "-m", *module]
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(cards)))} if torch.cuda.is_available() else {}
    try:
        done = subprocess.run(
            command, cwd=PROJECT, env=os.environ | visible, capture_output=True, text=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(module)} did not end within {LIMIT} s on {cards} cards") from error
    speeds = re.findall(r"([\d,]+) tokens/s", done.stderr)
    if done.returncode or not speeds or not (out / "run.json").is_file():
        raise RuntimeError(f"{' '.join(module)} failed on {cards} cards: {done.stderr[-400:]}")
    return float(speeds[-1].replace(",", ""))


def measure_cards(recipe: list[str], counts: list[int], work: Path) -> list[Figure]:
    """Train on one card and on each of `counts`."""
    one = train([*recipe, f"batch_size={BATCH}"], 1, False, work / "1")
    figures = [Figure("1 card, tokens/s", f"{one:,.0f}")]
    for cards in counts:
        step = [*recipe, f"batch_size={BATCH * cards}"]
        ddp = train(step, cards, False, work / f"ddp-{cards}")
        figures.append(Figure(f"{cards} cards, DDP, tokens/s", f"{ddp:,.0f}"))
        figures.append(Figure(f"{cards} cards, DDP / 1 card", f"{ddp / one:.2f}", EXPECTED.get(cards, "")))
        for method in ("lora", "full"):
            speed = train([*step, f"method={method}"], cards, True, work / f"fsdp-{method}-{cards}")
            figures.append(Figure(f"{cards} cards, FSDP, {method}: tokens/s, with its files", f"{speed:,.0f}"))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the cards of this machine, or with `quick` the nano on one device. Raises Unavailable for one card."""
    counts = [count for count in (2, 4) if count <= torch.cuda.device_count()]
    if not counts and not quick:
        raise Unavailable("It needs two GPUs.")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if quick:
            return measure_cards(["finetome-nano", *SMALL], [], work)
        base, rows = write_base(work / "base"), write_data(work / "rows.jsonl", 2 * ROWS)
        shape = [f"base={base}", f"data.name={rows}", f"max_steps={STEPS}", "checkpoints.steps=100000"]
        return measure_cards(["finetome-1b-tuned", *BEST, *shape], counts, work)
