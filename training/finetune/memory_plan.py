"""The plan of a run: does it fit into memory, and which options make it fast? Needs only the base's configuration.

The estimate counts bytes per parameter (weights, gradients, AdamW's two moments), and the activations that a batch of
full length keeps for the backward pass (Korthikanti et al. 2022, for a Llama's layer). It aims to be right within 20 %.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec

import psutil
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PretrainedConfig

from inference.errors import LabError
from inference.validation import reason_of
from training.finetune.base_model import load_config
from training.finetune.libraries.peft_options import lora_config
from training.recipe import Choice, Recipe, apply_override

# Bytes per parameter. NF4 with double quantization takes 4.127 bits (Dettmers et al. 2023).
NF4, HALF, SINGLE = 4.127 / 8, 2, 4
TRAINED = 4 + 4 + 8  # float32 weight, float32 gradient, AdamW's moments
RUNTIME = 0.8e9  # bytes that CUDA and its libraries take
CHUNK = 1024  # positions whose logits a fused loss holds at once
COUNTED: dict[str, Parameters] = {}  # by the base's configuration and the adapter's options


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: the layers' linear maps, all others (embeddings, norms), and the adapter's."""

    linear: int
    other: int
    adapter: int


@dataclass(frozen=True)
class Plan:
    """How a run is carried out. The batch is per process; `need` is the expected peak of memory in bytes.

    `sharded` means that the processes hold a part of the model each (FSDP); else each holds all of it (DDP).
    """

    batch_size: int
    gradient_accumulation: int
    processes: int
    sharded: bool
    checkpointing: bool
    fused_kernels: bool
    compile: bool
    need: float


def plan(recipe: Recipe, processes: int | None = None, sharded: bool | None = None) -> Plan:
    """How the recipe runs on this machine, by default with the processes that a launcher started.

    Raises LabError with the needed change if it can't fit.
    """
    config = load_config(recipe)
    processes = int(os.environ.get("WORLD_SIZE", "1")) if processes is None else processes
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" if sharded is None else sharded
    if sharded and recipe.method == "qlora":
        raise LabError("FSDP can't split a 4-bit base: set method=lora, or start it with --multi_gpu instead of FSDP.")
    batch_size, gradient_accumulation = split_batch(recipe, processes)
    shards = processes if sharded else 1
    cuda, memory = torch.cuda.is_available(), available_memory()
    without = memory_needed(recipe, config, batch_size, False, shards)
    checkpointing = decide(recipe.speed.gradient_checkpointing, without > 0.9 * memory)
    need = memory_needed(recipe, config, batch_size, checkpointing, shards)
    if need > memory:
        raise too_large(recipe, config, batch_size, need, memory, shards)
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
        sharded=sharded,
        checkpointing=checkpointing,
        fused_kernels=decide(recipe.speed.fused_kernels, liger),
        # Off by default: batches differ in length, and each length compiles again. No run won those minutes back.
        compile=decide(recipe.speed.compile, False),
        need=need,
    )


def available_memory() -> float:
    """Bytes of memory on the smallest GPU, or of this machine if it has no GPU."""
    if not torch.cuda.is_available():
        return psutil.virtual_memory().available
    return min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(torch.cuda.device_count()))


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


def count_parameters(recipe: Recipe, config: PretrainedConfig) -> Parameters:
    """The parameters of the base and of the recipe's adapter on it, without memory for them.

    Raises LabError if the adapter's options don't fit the base, such as the names of its target modules.
    """
    key = config.to_json_string() + json.dumps([recipe.method, recipe.lora.model_dump(), recipe.peft])
    if key not in COUNTED:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        maps = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
        linear, total = sum(m.weight.numel() for m in maps), model.num_parameters()
        COUNTED[key] = Parameters(linear, total - linear, count_adapter(recipe, model))
    return COUNTED[key]


def count_adapter(recipe: Recipe, model: torch.nn.Module) -> int:
    """The parameters of the recipe's adapter on a base without memory."""
    adapter = lora_config(recipe)
    if adapter is None:
        return 0
    try:
        # Some initializations compute with the base's weights, which are not loaded yet.
        adapted = get_peft_model(model, replace(adapter, init_lora_weights=True), low_cpu_mem_usage=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise LabError(
            f"The adapter doesn't fit the base {recipe.base} ({reason_of(error)}): change the options in “peft”."
        ) from error
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise LabError("TRL trains no adapter on the output layer: remove lm_head from peft.target_modules.")
    return sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def memory_needed(
    recipe: Recipe, config: PretrainedConfig, batch_size: int, checkpointing: bool, shards: int = 1
) -> float:
    """Bytes at the peak of a step on a GPU, which holds one of `shards` equal parts of the weights."""
    count = count_parameters(recipe, config)
    total = count.linear + count.other
    if recipe.method == "full":
        weights: float = TRAINED * total
        if has_reference(recipe):
            weights += SINGLE * total
    else:
        # The preparation of a 4-bit base casts everything that is not quantized to float32.
        weights = NF4 * count.linear + SINGLE * count.other if recipe.method == "qlora" else HALF * total
        weights += TRAINED * count.adapter
    if shards > 1:
        # A step gathers the embeddings and two layers at a time, and for full fine-tuning their gradients.
        gathered = HALF * (2 * count.linear / config.num_hidden_layers + count.other)
        weights = weights / shards + gathered * (2 if recipe.method == "full" else 1)
    tokens = batch_size * recipe.max_length * (2 if recipe.objective == "dpo" else 1)  # both answers at once
    layer = tokens * HALF * (14 * config.hidden_size + 5 * config.intermediate_size)
    activations = config.num_hidden_layers * (tokens * HALF * config.hidden_size if checkpointing else layer)
    logits = min(tokens, CHUNK) * config.vocab_size * (SINGLE + SINGLE)
    return RUNTIME + weights + activations + layer + logits


def has_reference(recipe: Recipe) -> bool:
    """Whether preferences are learnt with a copy of the base in memory: an adapter's reference is the base itself."""
    return recipe.objective == "dpo" and recipe.method == "full" and not recipe.trl.get("precompute_ref_log_probs")


def too_large(
    recipe: Recipe, config: PretrainedConfig, batch_size: int, need: float, memory: float, shards: int
) -> LabError:
    """The error for a run that can't fit. It names the first changes that make it fit, each on top of the last."""
    changes = []
    if recipe.speed.gradient_checkpointing == "off":
        changes.append(["speed.gradient_checkpointing=auto"])
    if batch_size > 1:
        changes.append(["batch_size=1", f"gradient_accumulation={recipe.batch_size * recipe.gradient_accumulation}"])
    if recipe.method != "qlora" and shards == 1:
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
        if memory_needed(changed, config, min(batch_size, changed.batch_size), checkpointing, shards) <= memory:
            return LabError(f"{reason}: add {' '.join(overrides)}.")
    return LabError(f"{reason}: choose a smaller base or a bigger machine.")
