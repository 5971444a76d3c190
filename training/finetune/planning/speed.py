"""How long a step takes: the arithmetic at a share of the card's peak, and what Python needs to launch the kernels of
each micro-batch and layer. The GPU computes meanwhile, so the longer of them counts, and a little of the other.

Both parts are fitted to this project's own runs (docs/benchmarks.md, Training speed). Only an H200, CPUs and, by the
study, a T4 have been measured: every other card is scaled by its peak, and its time is a guess that can be wrong by a
factor of two.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from training.finetune.planning.cards import Card
    from training.finetune.planning.plan import Plan
    from training.recipe import Recipe

RECOMPUTED = 4 / 3  # gradient checkpointing computes each forward pass twice
# DPO: two answers; the reference model's forward pass is added to a forward and a backward pass of LoRA.
PREFERENCE = 2 * 1.5
UNKNOWN_SHARE = 1 / 4  # of max_length, that a conversation of unknown data has on average: FineTome's


@dataclass(frozen=True)
class Rows:
    """The rows of an epoch, cut at max_length. `mean` and `longest` are tokens of a row, which holds several
    conversations if they are packed; `conversation` is the mean of a conversation."""

    count: int
    mean: float
    longest: int
    conversation: float


def rows_of(recipe: Recipe, lengths: Sequence[int] | np.ndarray | None) -> Rows:
    """The rows for conversations of these lengths in tokens (uncut). None stands for data that are not known yet: the
    longest row is then one of max_length."""
    most = recipe.max_length
    if lengths is None or not len(lengths):
        return Rows(0, most * (1 if recipe.packing else UNKNOWN_SHARE), most, most * UNKNOWN_SHARE)
    count, cut = count_rows(recipe, lengths), np.minimum(lengths, most)
    return Rows(count, float(cut.sum()) / count, most if recipe.packing else int(cut.max()), float(cut.mean()))


def step_seconds(recipe: Recipe, config: PretrainedConfig, card: Card, plan: Plan, rows: Rows) -> float:
    """Seconds of an average optimizer step on a card, or on all `plan.processes` cards together."""
    tokens = rows.mean * plan.micro_batch
    flops = tokens * flops_per_token(recipe, config, attended_tokens(recipe, plan, rows))
    launch = card.launch[plan.method == "qlora"] * config.get_text_config().num_hidden_layers
    passes = (RECOMPUTED if plan.checkpointing else 1.0) * (PREFERENCE if recipe.objective == "dpo" else 1.0)
    return math.hypot(flops / (card.efficiency * card.peak), launch) * passes * plan.gradient_accumulation


def attended_tokens(recipe: Recipe, plan: Plan, rows: Rows) -> float:
    """The length of a conversation in tokens whose attention costs as much as a token's in this plan. torch's fused
    attention computes all of the row that TRL joins of packed ones, with no half left out."""
    joined = recipe.packing and plan.attention == "sdpa"
    return 2 * rows.mean * plan.micro_batch if joined else rows.conversation


def flops_per_token(recipe: Recipe, config: PretrainedConfig, length: float) -> float:
    """FLOPs of forward and backward pass for one token of a conversation of `length` tokens, as `progress` counts them:
    TRL counts 6 for each weight; a frozen weight has no gradient (4); the causal mask leaves half of the scores."""
    from trl.trainer.utils import compute_flops_per_token

    text = config.get_text_config()
    products = compute_flops_per_token(text, 0)
    scores = (compute_flops_per_token(text, int(length)) - products) / 2
    return (products if recipe.method == "full" else products * 4 / 6) + scores


def count_steps(recipe: Recipe, lengths: Sequence[int] | np.ndarray) -> int:
    """Optimizer steps of the run, as the trainer counts them."""
    steps = math.ceil(math.ceil(count_rows(recipe, lengths) / recipe.batch_size) * recipe.epochs)
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
