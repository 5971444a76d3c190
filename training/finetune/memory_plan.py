"""Will it fit, and how is it made to run fast: decided from the base's configuration, before its weights are fetched.

The estimate counts bytes a parameter (weights, gradients, AdamW's two moments) and what a batch of full length keeps
for the backward pass, after Korthikanti et al. 2022 for a Llama's layer. It is meant to be right within a fifth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.recipe import Choice, Recipe, apply_override

# Bytes a parameter. NF4 with double quantization: 4.127 bits (Dettmers et al. 2023).
NF4, HALF, SINGLE = 4.127 / 8, 2, 4
TRAINED = 4 + 4 + 8  # float32 weight, gradient, AdamW's moments
RUNTIME = 0.8e9  # bytes that CUDA and its libraries take
CHUNK = 1024  # positions whose logits are there at once in a fused loss


@dataclass(frozen=True)
class Plan:
    """How a run is carried out; `need` is the bytes that it is expected to take."""

    batch_size: int
    gradient_accumulation: int
    processes: int
    checkpointing: bool
    fused_kernels: bool
    compile: bool
    need: float


@contextmanager
def translate_base_errors(base: str) -> Iterator[None]:
    """Turn what loading a base raises into a sentence."""
    try:
        with translate_hub_errors(base, "weights"):
            try:
                yield
            except OSError as error:
                raise reason_of(error) from error
    except (ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LabError(f"The base {base} can't be loaded ({reason}): check its name, or try again.") from error


def reason_of(error: OSError) -> BaseException:
    """Why transformers could not read a base: the Hub's or the system's own error where it wraps one, which tells more,
    else a ValueError with its words."""
    cause: BaseException | None = error
    while cause is not None and type(cause).__module__ == "builtins" and getattr(cause, "errno", None) is None:
        cause = cause.__cause__
    return cause or ValueError(str(error))


def configuration(base: str, location: str) -> PretrainedConfig:
    """The base's configuration; a few kilobytes. Raises LabError where it can't be had."""
    with translate_base_errors(base):
        return AutoConfig.from_pretrained(location)


def counts(config: PretrainedConfig) -> tuple[int, int, int]:
    """Parameters in the layers' linear maps, all others (embeddings, norms), and those of a LoRA of rank 1 on the maps:
    in + out each. No memory is taken for them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    maps = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in name]
    linear = sum(m.weight.numel() for m in maps)
    return linear, model.num_parameters() - linear, sum(m.in_features + m.out_features for m in maps)


def memory_needed(recipe: Recipe, config: PretrainedConfig, batch_size: int, checkpointing: bool) -> float:
    """Bytes at the peak of a step, on a GPU."""
    linear, other, per_rank = counts(config)
    if recipe.method == "full":
        fixed = TRAINED * (linear + other)
    else:
        # Preparing a 4-bit base casts what isn't quantized to float32.
        fixed = NF4 * linear + SINGLE * other if recipe.method == "qlora" else HALF * (linear + other)
        fixed += TRAINED * recipe.lora.r * per_rank
    tokens = batch_size * recipe.max_length
    width, wide = config.hidden_size, config.intermediate_size
    layer = tokens * HALF * (14 * width + 5 * wide)
    kept = config.num_hidden_layers * (tokens * HALF * width if checkpointing else layer)
    logits = min(tokens, CHUNK) * config.vocab_size * (SINGLE + SINGLE)
    return RUNTIME + fixed + kept + layer + logits


def decide(choice: Choice, auto: bool) -> bool:
    """A forced choice, or what seems best."""
    return choice == "on" or (choice == "auto" and auto)


def plan(recipe: Recipe) -> Plan:
    """How the recipe runs here. Raises LabError with the number and the mend where it can't fit."""
    config = configuration(recipe.base, recipe.base_location)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size, gradient_accumulation = shared(recipe, processes)
    cuda = torch.cuda.is_available()
    room = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().available
    without = memory_needed(recipe, config, batch_size, checkpointing=False)
    # On a CPU recomputing costs most and memory is rarely what lacks.
    checkpointing = decide(recipe.speed.gradient_checkpointing, without > 0.9 * room)
    need = memory_needed(recipe, config, batch_size, checkpointing)
    if need > room:
        raise wont_fit(recipe, config, batch_size, need, room)
    if recipe.speed.fused_kernels == "on" and not (cuda and find_spec("liger_kernel")):
        raise LabError("speed.fused_kernels=on needs an NVIDIA GPU and `pip install liger-kernel`: do so, or say auto.")
    return Plan(
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        processes=processes,
        checkpointing=checkpointing,
        fused_kernels=decide(recipe.speed.fused_kernels, cuda and find_spec("liger_kernel") is not None),
        # Batches differ in length, packed ones too, and each length compiles anew: minutes that no run got back.
        compile=recipe.speed.compile == "on",
        need=need,
    )


def shared(recipe: Recipe, processes: int) -> tuple[int, int]:
    """Batch size and gradient accumulation of each process, so that together they take the recipe's batch a step."""
    if recipe.gradient_accumulation % processes == 0:
        return recipe.batch_size, recipe.gradient_accumulation // processes
    if recipe.batch_size % processes == 0:
        return recipe.batch_size // processes, recipe.gradient_accumulation
    together = recipe.batch_size * recipe.gradient_accumulation
    raise LabError(
        f"A batch of {recipe.batch_size} × {recipe.gradient_accumulation} can't be shared by {processes} processes: "
        f"start fewer, or set gradient_accumulation to a multiple of {processes} ({together} conversations a step now)."
    )


def wont_fit(recipe: Recipe, config: PretrainedConfig, batch_size: int, need: float, room: float) -> LabError:
    """The refusal, with the first changes that would do; each comes on top of those before it."""
    mends = []
    if recipe.speed.gradient_checkpointing == "off":
        mends.append(["speed.gradient_checkpointing=auto"])
    if batch_size > 1:
        mends.append(["batch_size=1", f"gradient_accumulation={recipe.batch_size * recipe.gradient_accumulation}"])
    if recipe.method != "qlora":
        mends.append(["method=qlora"])
    if recipe.max_length > 512:
        mends.append(["max_length=512"])
    what = f"{recipe.name} needs about {need / 1e9:.1f} GB of memory and there are {room / 1e9:.1f}"
    values, overrides = recipe.model_dump(), []
    for mend in mends:
        for override in mend:
            apply_override(values, override)
        overrides += mend
        changed = Recipe.model_validate(values)
        size = min(batch_size, changed.batch_size)
        checkpointing = decide(changed.speed.gradient_checkpointing, True)
        if memory_needed(changed, config, size, checkpointing) <= room:
            return LabError(f"{what}: add {' '.join(overrides)}.")
    return LabError(f"{what}: choose a smaller base or a bigger machine.")
