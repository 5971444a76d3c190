"""What a run will take, before anyone pays for a GPU: its steps, and its time and memory on common cards.

Memory is `memory_plan`'s arithmetic. Time is a model of one micro-batch: a fixed part for each layer, in which the GPU
waits for Python to launch kernels, and the arithmetic at a share of the card's peak. Both parts are fitted to this
project's own runs (docs/benchmarks.md, Training speed). Only an H200, CPUs and, by the study, a T4 have been
measured: every other card is scaled by its peak, and its time is a guess that can be wrong by a factor of two.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from training.recipe import Recipe

RECOMPUTED = 4 / 3  # gradient checkpointing computes each forward pass twice
# DPO: two answers; the reference model's forward pass is added to a forward and a backward pass of LoRA.
PREFERENCE = 2 * 1.5


@dataclass(frozen=True)
class Card:
    """A device to train on. `memory` is what torch can use, in bytes; `peak` is dense 16-bit FLOP/s (data sheet).

    `efficiency` is the share of the peak that the arithmetic of a large batch reaches; `launch` is the seconds that a
    layer takes for a micro-batch, however small (16-bit LoRA, and QLoRA, which also unpacks the weights).
    """

    name: str
    memory: float
    peak: float
    bfloat16: bool = True
    efficiency: float = 0.32  # H200: the slope between 2 and 8 packed rows of a 1B, 60,000 tokens/s
    launch: tuple[float, float] = (0.0034, 0.0075)  # H200: the intercept of the same line
    source: str = "scaled from an H200 by its peak"
    gpu: bool = True


# The T4's share of its peak lies between those of the study's two runs of a 1B: 23 h unpacked, 11 h packed.
CARDS = {
    card.name: card
    for card in (
        Card("T4", 15.6e9, 65e12, bfloat16=False, efficiency=0.09, source="from the study's two runs"),
        Card("L4", 23.6e9, 121e12),
        Card("A10G", 23.6e9, 70e12),
        Card("A100", 42.3e9, 312e12),
        Card("H100", 84.9e9, 989e12, source="as measured on an H200"),
    )
}
# FLOP/s. A CPU with matrix units (AMX) multiplies faster than that, and then other work limits a step: the nano took
# 100 GFLOP/s there. Without them the nano took 34 and a 270M 45 GFLOP/s on one core, 0.35 to 0.5 of its product.
CPU_LIMIT = 3e11
HERE = "here"  # the name of this machine among the cards


@dataclass(frozen=True)
class Estimate:
    """What a run takes on a card. `need` is the peak of memory in bytes, `seconds` the time of all steps.

    `checkpointing` says whether memory is so short that activations are recomputed.
    """

    card: Card
    need: float
    checkpointing: bool
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether the run fits into the card's memory."""
        return self.need <= self.card.memory


def find_card(name: str) -> Card:
    """A card by name in any case, `here` or `cpu`. Raises LabError if there is no such card."""
    from inference.errors import LabError
    from inference.validation import nearest

    if name.lower() in (HERE, "cpu"):
        return this_machine(gpu=name.lower() == HERE)
    for known, card in CARDS.items():
        if known.lower() == name.lower():
            return card
    known_names = [*CARDS, "cpu", HERE]
    raise LabError(f"There is no card “{name}”{nearest(name, known_names)}: choose one of {', '.join(known_names)}.")


def this_machine(gpu: bool = True) -> Card:
    """This machine: its GPU if it has one and `gpu` is true, else its CPU, whose peak is measured in half a second."""
    import psutil
    import torch

    from training.finetune.progress import peak_flops

    if gpu and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        card = Card(f"{HERE} ({properties.name})", properties.total_memory, peak_flops(), bfloat16)
        named = next((known for known in CARDS.values() if known.name in re.split(r"[ -]", properties.name)), card)
        return replace(card, efficiency=named.efficiency, source=named.source)
    bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    memory, peak = psutil.virtual_memory().available, min(peak_flops(), CPU_LIMIT)
    return Card(f"{HERE} (CPU)", memory, peak, bfloat16, 0.4, (0.01, 0.013), "from a matrix product here", gpu=False)


def estimate(recipe: Recipe, config: PretrainedConfig, lengths: Sequence[int] | np.ndarray, card: Card) -> Estimate:
    """What the recipe takes on one card for rows of these lengths in tokens (uncut)."""
    from training.finetune import memory_plan

    auto = recipe.speed.gradient_checkpointing == "auto"
    checkpointing = recipe.speed.gradient_checkpointing == "on"
    need = memory_plan.memory_needed(recipe, config, recipe.batch_size, checkpointing)
    if auto and need > 0.9 * card.memory:  # as `memory_plan.plan` decides
        checkpointing = True
        need = memory_plan.memory_needed(recipe, config, recipe.batch_size, checkpointing)
    seconds = step_seconds(recipe, config, lengths, card, checkpointing) * count_steps(recipe, lengths)
    return Estimate(card, need, checkpointing, seconds)


def step_seconds(
    recipe: Recipe, config: PretrainedConfig, lengths: Sequence[int] | np.ndarray, card: Card, checkpointing: bool
) -> float:
    """Seconds of an average optimizer step on a card."""
    rows = count_rows(recipe, lengths)
    tokens = float(np.minimum(lengths, recipe.max_length).sum()) / max(rows, 1) * recipe.batch_size
    length = int(min(float(np.mean(lengths)), recipe.max_length))
    arithmetic = tokens * flops_per_token(recipe, config, length) / (card.efficiency * card.peak)
    launch = card.launch[recipe.method == "qlora"] * config.get_text_config().num_hidden_layers
    passes = (RECOMPUTED if checkpointing else 1.0) * (PREFERENCE if recipe.objective == "dpo" else 1.0)
    return (arithmetic + launch) * passes * recipe.gradient_accumulation


def flops_per_token(recipe: Recipe, config: PretrainedConfig, length: int) -> float:
    """FLOPs of forward and backward pass for one token of a conversation of `length` tokens, as `progress` counts them:
    TRL counts 6 for each weight; a frozen weight has no gradient (4); the causal mask leaves half of the scores."""
    from trl.trainer.utils import compute_flops_per_token

    text = config.get_text_config()
    products = compute_flops_per_token(text, 0)
    scores = (compute_flops_per_token(text, length) - products) / 2
    return (products if recipe.method == "full" else products * 4 / 6) + scores


def count_steps(recipe: Recipe, lengths: Sequence[int] | np.ndarray) -> int:
    """Optimizer steps of the run, as the trainer counts them."""
    micro_batches = math.ceil(count_rows(recipe, lengths) / recipe.batch_size)
    steps = math.ceil(math.ceil(micro_batches / recipe.gradient_accumulation) * recipe.epochs)
    return min(steps, recipe.max_steps) if recipe.max_steps else steps


def count_rows(recipe: Recipe, lengths: Sequence[int] | np.ndarray) -> int:
    """Rows of an epoch: one for each conversation, or with packing as many as best-fit decreasing fills, TRL's way."""
    if not recipe.packing:
        return len(lengths)
    rows = 0
    room: list[int] = []  # what is left in each row that has room, sorted
    for length in sorted(map(int, np.minimum(lengths, recipe.max_length)), reverse=True):
        place = bisect_left(room, length)
        if place == len(room):
            rows += 1
            left = recipe.max_length - length
        else:
            left = room.pop(place) - length
        if left:
            insort(room, left)
    return rows
