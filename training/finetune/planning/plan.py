"""The plan of a run: the fastest way to compute a step that fits into the card's memory.

A step learns the same whatever is chosen: the recipe's batch, its tokens weighted alike. The plan says how many
conversations are computed at once, whether activations are computed again, and with `method: auto` in how many bits the
base is held. A recipe can set each of them. Needs only the base's configuration and the lengths of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Literal

from inference.errors import LabError
from training.finetune.base_model import load_config
from training.finetune.planning.cards import Card, this_machine
from training.finetune.planning.memory import memory_needed
from training.finetune.planning.speed import Rows, rows_of, step_seconds
from training.overrides import apply_override
from training.recipe import Choice, Recipe

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

BITS = {"qlora": "4 bits", "lora": "16 bits", "full": "all weights"}
SAFE = 0.9  # the share of the memory that a plan fills, because its need is an estimate


@dataclass(frozen=True)
class Plan:
    """How a run is carried out.

    Attributes:
        micro_batch: the conversations that a process computes at once.
        gradient_accumulation: the micro-batches that each process computes in a step.
        processes: how many processes train, one for each card.
        sharded: whether each process holds a part of the model (FSDP); else each holds all of it (DDP).
        checkpointing: whether activations are computed again for the backward pass instead of kept.
        card, memory: the card's name and its memory in bytes.
        longest: the longest row in tokens.
        need: the expected peak of memory in bytes, for such rows.
        out_of_memory: the plans that this one replaced, such as "8 × 1": micro-batch and accumulation.
    """

    method: Literal["qlora", "lora", "full"]
    micro_batch: int
    gradient_accumulation: int
    processes: int
    sharded: bool
    checkpointing: bool
    attention: str
    fused_kernels: bool
    compile: bool
    eight_bit_optimizer: bool
    card: str
    memory: float
    longest: int = 0
    need: float = 0.0
    out_of_memory: tuple[str, ...] = ()

    @property
    def conversations(self) -> int:
        """The conversations of a step, on all processes together."""
        return self.micro_batch * self.gradient_accumulation * self.processes

    @property
    def split(self) -> str:
        """Micro-batch and accumulation, such as "8 × 1"."""
        return f"{self.micro_batch} × {self.gradient_accumulation}"

    def describe(self) -> str:
        """The plan in a sentence for the terminal."""
        several = f" on each of {self.processes} cards" if self.processes > 1 else ""
        parts = [
            BITS[self.method],
            f"{self.attention} attention",
            *(["fused kernels"] if self.fused_kernels else []),
            *(["recomputed activations"] if self.checkpointing else []),
            *(["8-bit optimizer"] if self.eight_bit_optimizer else []),
        ]
        memory = f"about {self.need / 1e9:.1f} of {self.memory / 1e9:.1f} GB"
        return f"Plan: a step of {self.conversations} as {self.split}{several}; {', '.join(parts)}; {memory}."


def plan(
    recipe: Recipe,
    processes: int | None = None,
    sharded: bool | None = None,
    lengths: Sequence[int] | np.ndarray | None = None,
    card: Card | None = None,
) -> Plan:
    """How the recipe runs on this machine, by default with the processes that a launcher started.

    `lengths` are the tokens of the conversations; without them, rows are assumed to be as long as max_length allows.
    Raises LabError with the needed change if it can't fit.
    """
    processes = started_processes() if processes is None else processes
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" if sharded is None else sharded
    card, config, rows = card or this_machine(), load_config(recipe), rows_of(recipe, lengths)
    if recipe.speed.fused_kernels == "on" and not card.liger:
        raise LabError(
            "speed.fused_kernels=on needs an NVIDIA GPU and the package liger-kernel: run `pip install liger-kernel`, "
            "or set it to auto."
        )
    chosen = fastest(recipe, config, card, rows, processes, sharded)
    if chosen.need > card.memory:
        raise too_large(recipe, config, card, rows, chosen)
    return chosen


def started_processes() -> int:
    """The number of processes that a launcher started, or 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fastest(
    recipe: Recipe, config: PretrainedConfig, card: Card, rows: Rows, processes: int = 1, sharded: bool = False
) -> Plan:
    """The fastest plan that fits the card, else the one that needs the least memory.

    Raises LabError if the recipe's batch can't be split as it asks.
    """
    found = [
        replace(each, longest=rows.longest, need=memory_needed(recipe, config, card, each, rows.longest))
        for each in possible_plans(recipe, card, processes, sharded)
    ]
    fitting = [each for each in found if each.need <= SAFE * card.memory]
    if not fitting:
        return min(found, key=lambda each: each.need)
    return min(fitting, key=lambda each: step_seconds(recipe, config, card, each, rows))


def possible_plans(recipe: Recipe, card: Card, processes: int, sharded: bool) -> Iterator[Plan]:
    """All plans that the recipe's own choices leave. With `memory: low`, those that need the least."""
    low = recipe.memory == "low"
    recomputed = recipe.speed.gradient_checkpointing
    choices = {"on": (True,), "off": (False,), "auto": (True,) if low else (False, True)}[recomputed]
    for method, size, checkpointing in product(methods(recipe, sharded), micro_batches(recipe, processes), choices):
        yield Plan(
            method=method,
            micro_batch=size,
            gradient_accumulation=recipe.batch_size // processes // size,
            processes=processes,
            sharded=sharded,
            checkpointing=checkpointing,
            attention=attention(recipe, card),
            fused_kernels=decide(recipe.speed.fused_kernels, card.liger),
            # Off by default: batches differ in length, and each length compiles again. No run won those minutes back.
            compile=decide(recipe.speed.compile, False),
            eight_bit_optimizer=low and card.gpu and "optim" not in recipe.trl,
            card=card.name,
            memory=card.memory,
        )


def methods(recipe: Recipe, sharded: bool) -> Sequence[Literal["qlora", "lora", "full"]]:
    """The methods that the recipe leaves open. Raises LabError if a 4-bit base would have to be split."""
    if sharded and recipe.method == "qlora":
        raise LabError("FSDP can't split a 4-bit base: set method=lora, or start it with --multi_gpu instead of FSDP.")
    if recipe.method != "auto":
        return (recipe.method,)
    if sharded:
        return ("lora",)
    return ("qlora",) if recipe.memory == "low" else ("lora", "qlora")


def micro_batches(recipe: Recipe, processes: int) -> Sequence[int]:
    """The sizes of a micro-batch that divide each process's part of the batch. Raises LabError if there is none."""
    part, rest = divmod(recipe.batch_size, processes)
    if rest or not part:
        raise LabError(
            f"{processes} processes can't share a batch of {recipe.batch_size}: start fewer, or set batch_size to a "
            f"multiple of {processes}."
        )
    sizes = [size for size in range(part, 0, -1) if part % size == 0]
    wanted = recipe.speed.micro_batch
    if wanted == "auto":
        return sizes[-1:] if recipe.memory == "low" else sizes
    if wanted not in sizes:
        raise LabError(
            f"speed.micro_batch={wanted} can't divide a step of {part} conversations on each card: choose "
            f"{' or '.join(map(str, reversed(sizes)))}, or auto."
        )
    return (wanted,)


def attention(recipe: Recipe, card: Card) -> str:
    """The kind of attention: `varlen` computes no padding (`training/finetune/attention.py`), the others are
    transformers' own. On a CPU, eager attention is faster for rows that are not packed, most of all backward. Raises
    LabError if the rows can't be joined as the recipe asks for.
    """
    cuts = {"packing_strategy", "truncation_mode"} & recipe.trl.keys()  # TRL then cuts the rows itself
    joins = recipe.packing or (recipe.objective == "sft" and not cuts)
    if recipe.speed.attention == "varlen" and not joins:
        raise LabError("speed.attention=varlen needs objective=sft, and rows that TRL does not cut: set it to auto.")
    if recipe.speed.attention != "auto":
        return recipe.speed.attention
    if joins and (card.gpu or recipe.packing):
        return "varlen"
    return "sdpa" if card.gpu else "eager"


def decide(choice: Choice, auto: bool) -> bool:
    """Whether an option is on: as the recipe says, or `auto`."""
    return choice == "on" or (choice == "auto" and auto)


def too_large(recipe: Recipe, config: PretrainedConfig, card: Card, rows: Rows, smallest: Plan) -> LabError:
    """The error for a run that can't fit. It names the first changes that make it fit, each on top of the last."""
    changes = []
    if recipe.speed.gradient_checkpointing == "off":
        changes.append("speed.gradient_checkpointing=auto")
    if recipe.speed.micro_batch != "auto":
        changes.append("speed.micro_batch=auto")
    if recipe.method in ("lora", "full") and not smallest.sharded:
        changes.append("method=qlora")
    if recipe.memory != "low" and card.gpu:
        changes.append("memory=low")
    if rows.longest > 512:
        changes.append("max_length=512")
    reason = f"{recipe.name} needs about {smallest.need / 1e9:.1f} GB of memory, but {card.memory / 1e9:.1f} GB are"
    values = recipe.model_dump()
    for number, change in enumerate(changes, 1):
        apply_override(values, change)
        changed = Recipe.model_validate(values)
        shorter = replace(rows, longest=min(rows.longest, changed.max_length))
        found = fastest(changed, config, card, shorter, smallest.processes, smallest.sharded)
        if found.need <= card.memory:
            return LabError(f"{reason} available: add {' '.join(changes[:number])}.")
    return LabError(f"{reason} available: choose a smaller base or a bigger machine.")
