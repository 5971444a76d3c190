"""The plan of a run: does it fit into memory, and which options make it fast? Needs only the base's configuration.

The estimate counts bytes per parameter (weights, gradients, AdamW's two moments), and the activations that a batch of
full length keeps for the backward pass (Korthikanti et al. 2022, for a Llama's layer). It aims to be right within 20 %.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from inference.errors import LabError
from training.finetune.base_model import load_config
from training.recipe import Choice, Recipe, apply_override

# Bytes per parameter. NF4 with double quantization takes 4.127 bits (Dettmers et al. 2023).
NF4, HALF, SINGLE = 4.127 / 8, 2, 4
TRAINED = 4 + 4 + 8  # float32 weight, float32 gradient, AdamW's moments
RUNTIME = 0.8e9  # bytes that CUDA and its libraries take
CHUNK = 1024  # positions whose logits a fused loss holds at once


@dataclass(frozen=True)
class Plan:
    """How a run is carried out. The batch is per process; `need` is the expected peak of memory in bytes."""

    batch_size: int
    gradient_accumulation: int
    processes: int
    checkpointing: bool
    fused_kernels: bool
    compile: bool
    need: float


def plan(recipe: Recipe) -> Plan:
    """How the recipe runs on this machine. Raises LabError with the needed change if it can't fit."""
    config = load_config(recipe)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size, gradient_accumulation = split_batch(recipe, processes)
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().available
    without = memory_needed(recipe, config, batch_size, checkpointing=False)
    checkpointing = decide(recipe.speed.gradient_checkpointing, without > 0.9 * memory)
    need = memory_needed(recipe, config, batch_size, checkpointing)
    if need > memory:
        raise too_large(recipe, config, batch_size, need, memory)
    liger = cuda and find_spec("liger_kernel") is not None
    if recipe.speed.fused_kernels == "on" and not liger:
        raise LabError(
            "speed.fused_kernels=on needs an NVIDIA GPU and the package liger-kernel: run `pip install liger-kernel`, "
            "or set it to auto."
        )
    return Plan(
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        processes=processes,
        checkpointing=checkpointing,
        fused_kernels=decide(recipe.speed.fused_kernels, liger),
        # Off by default: batches differ in length, and each length compiles again. No run won those minutes back.
        compile=decide(recipe.speed.compile, False),
        need=need,
    )


def decide(choice: Choice, auto: bool) -> bool:
    """Whether an option is on: as the recipe says, or `auto`."""
    return choice == "on" or (choice == "auto" and auto)


def split_batch(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Batch size and gradient accumulation of each process; together the processes take the recipe's batch per step.

    Raises LabError if the batch can't be divided.
    """
    if recipe.gradient_accumulation % processes == 0:
        return recipe.batch_size, recipe.gradient_accumulation // processes
    if recipe.batch_size % processes == 0:
        return recipe.batch_size // processes, recipe.gradient_accumulation
    total = recipe.batch_size * recipe.gradient_accumulation
    raise LabError(
        f"{processes} processes can't share a batch of {recipe.batch_size} × {recipe.gradient_accumulation}: start "
        f"fewer, or set gradient_accumulation to a multiple of {processes} (a step takes {total} conversations now)."
    )


def count_parameters(config: PretrainedConfig) -> tuple[int, int, int]:
    """Parameters of the layers' linear maps, all other parameters (embeddings, norms), and the parameters of a LoRA of
    rank 1 on the maps (in + out of each). Allocates no memory for them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    maps = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    linear = sum(m.weight.numel() for m in maps)
    return linear, model.num_parameters() - linear, sum(m.in_features + m.out_features for m in maps)


def memory_needed(recipe: Recipe, config: PretrainedConfig, batch_size: int, checkpointing: bool) -> float:
    """Bytes at the peak of a step on a GPU."""
    linear, other, per_rank = count_parameters(config)
    if recipe.method == "full":
        weights: float = TRAINED * (linear + other)
        if has_reference(recipe):
            weights += SINGLE * (linear + other)
    else:
        # The preparation of a 4-bit base casts everything that is not quantized to float32.
        weights = NF4 * linear + SINGLE * other if recipe.method == "qlora" else HALF * (linear + other)
        weights += TRAINED * recipe.lora.r * per_rank
    tokens = batch_size * recipe.max_length * (2 if recipe.objective == "dpo" else 1)  # both answers at once
    layer = tokens * HALF * (14 * config.hidden_size + 5 * config.intermediate_size)
    activations = config.num_hidden_layers * (tokens * HALF * config.hidden_size if checkpointing else layer)
    logits = min(tokens, CHUNK) * config.vocab_size * (SINGLE + SINGLE)
    return RUNTIME + weights + activations + layer + logits


def has_reference(recipe: Recipe) -> bool:
    """Whether preferences are learnt with a copy of the base in memory: an adapter's reference is the base itself."""
    return recipe.objective == "dpo" and recipe.method == "full" and not recipe.trl.get("precompute_ref_log_probs")


def too_large(recipe: Recipe, config: PretrainedConfig, batch_size: int, need: float, memory: float) -> LabError:
    """The error for a run that can't fit. It names the first changes that make it fit, each on top of the last."""
    changes = []
    if recipe.speed.gradient_checkpointing == "off":
        changes.append(["speed.gradient_checkpointing=auto"])
    if batch_size > 1:
        changes.append(["batch_size=1", f"gradient_accumulation={recipe.batch_size * recipe.gradient_accumulation}"])
    if recipe.method != "qlora":
        changes.append(["method=qlora"])
    if recipe.max_length > 512:
        changes.append(["max_length=512"])
    reason = f"{recipe.name} needs about {need / 1e9:.1f} GB of memory, but {memory / 1e9:.1f} GB are available"
    values = recipe.model_dump()
    overrides: list[str] = []
    for change in changes:
        for override in change:
            apply_override(values, override)
        overrides += change
        changed = Recipe.model_validate(values)
        checkpointing = decide(changed.speed.gradient_checkpointing, True)
        if memory_needed(changed, config, min(batch_size, changed.batch_size), checkpointing) <= memory:
            return LabError(f"{reason}: add {' '.join(overrides)}.")
    return LabError(f"{reason}: choose a smaller base or a bigger machine.")
