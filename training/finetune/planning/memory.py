"""How much memory a plan needs, from the base's configuration alone.

The estimate counts bytes per parameter (weights, gradients, AdamW's two moments), and the activations that a batch of
full length keeps for the backward pass (Korthikanti et al. 2022, for a Llama's layer). It aims to be right within 20 %.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, PretrainedConfig

from inference.errors import LabError
from inference.validation import reason_of
from training.finetune.libraries.peft_options import lora_config
from training.recipe import Recipe

if TYPE_CHECKING:
    from training.finetune.planning.cards import Card
    from training.finetune.planning.plan import Plan

# Bytes per parameter. NF4 with double quantization takes 4.127 bits (Dettmers et al. 2023).
NF4, HALF, SINGLE = 4.127 / 8, 2, 4
TRAINED = 4 + 4  # float32 weight and gradient
MOMENTS = {False: 8, True: 2}  # AdamW's two moments, in float32 or in 8 bits
RUNTIME = 0.8e9  # bytes that CUDA and its libraries take
TILE = 4096  # TRL's fused loss holds the logits of so many tokens and words of the vocabulary at once
COUNTED: dict[str, Parameters] = {}  # by the base's configuration and the adapter's options


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters: the layers' linear maps, all others (embeddings, norms), and the adapter's."""

    linear: int
    other: int
    adapter: int


def count_parameters(recipe: Recipe, config: PretrainedConfig) -> Parameters:
    """The parameters of the base and of the recipe's adapter on it, without memory for them.

    Raises LabError if the adapter's options don't fit the base, such as the names of its target modules.
    """
    key = config.to_json_string() + json.dumps([recipe.method == "full", recipe.lora.model_dump(), recipe.peft])
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


def memory_needed(recipe: Recipe, config: PretrainedConfig, card: Card, plan: Plan, longest: int) -> float:
    """Bytes on each card at the peak of a step, whose longest row has `longest` tokens."""
    answers = 2 if recipe.objective == "dpo" else 1  # both answers at once
    tokens = plan.micro_batch * longest * answers
    size = SINGLE if card.dtype == "float32" else HALF
    weights, activations = weight_bytes(recipe, config, plan, size), activation_bytes(config, plan, tokens, size)
    return RUNTIME + weights + activations + loss_bytes(config, card, tokens)


def weight_bytes(recipe: Recipe, config: PretrainedConfig, plan: Plan, size: int) -> float:
    """Bytes of the weights that a device holds, of their gradients and of their moments. A frozen weight that is not
    quantized takes `size` bytes."""
    count, trained = count_parameters(recipe, config), TRAINED + MOMENTS[plan.eight_bit_optimizer]
    total = count.linear + count.other
    if plan.method == "full":
        weights: float = trained * total + (SINGLE * total if has_reference(recipe) else 0)
    else:
        weights = (NF4 if plan.method == "qlora" else size) * count.linear + size * count.other
        weights += trained * count.adapter
    if not plan.sharded:
        return weights
    # A step gathers the embeddings and two layers at a time, and for full fine-tuning their gradients.
    gathered = HALF * (2 * count.linear / config.num_hidden_layers + count.other)
    return weights / plan.processes + gathered * (2 if plan.method == "full" else 1)


def activation_bytes(config: PretrainedConfig, plan: Plan, tokens: int, size: int) -> float:
    """Bytes that the forward pass of `tokens` tokens keeps for the backward pass, `size` for each number.

    Liger's kernels compute parts of norms and activation functions again instead of keeping them. Fitted to a 1B and a
    3B as on a T4; 8 × 2,048 tokens of a 1B take a fifth less.
    """
    full = plan.method == "full"  # the layers' sums stay in float32, as its weights
    narrow, wide = (7, 3.5) if plan.fused_kernels and not full else (14, 5)
    layer = tokens * size * (narrow * config.hidden_size + wide * config.intermediate_size)
    kept = tokens * (SINGLE if full else size) * config.hidden_size if plan.checkpointing else layer
    return config.num_hidden_layers * kept + layer


def loss_bytes(config: PretrainedConfig, card: Card, tokens: int) -> float:
    """Bytes of the logits and their gradient. TRL's fused loss computes them in tiles on a GPU; on a CPU, transformers
    holds all of them, their softmax and its gradient in float32."""
    if not card.gpu:
        return 3 * SINGLE * tokens * config.vocab_size
    tile = min(tokens, TILE) * min(config.vocab_size, TILE)
    return tile * (SINGLE + HALF) + SINGLE * tokens * config.hidden_size


def has_reference(recipe: Recipe) -> bool:
    """Whether preferences are learnt with a copy of the base in memory: an adapter's reference is the base itself."""
    return recipe.objective == "dpo" and recipe.method == "full" and not recipe.trl.get("precompute_ref_log_probs")
