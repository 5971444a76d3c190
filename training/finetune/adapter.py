"""The adapter's part of a step: float32 weights, but no pass over the activations for it.

The weights of LoRA (Hu et al. 2021) and their moments are float32, because bfloat16 rounds most small updates away. In
that case PEFT casts the input of each layer to float32 and its output back, and adds the update in two more passes over
the output. Here the weights are cast, which are a hundred times smaller, and one product adds the update. Gradients
reach the float32 weights through the cast.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear, Linear4bit
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch.nn.functional import linear


class FusedUpdate(LoraVariant):
    """PEFT's plain LoRA, computed in the dtype of the base's output."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """`result` + scaling · B A x. `x` is (…, in features), `result` is the base's output (…, out features)."""
        dtype = result.dtype
        matrices: Any = (module.lora_A[active_adapter], module.lora_B[active_adapter])
        down, up = (matrix.weight.to(dtype) for matrix in matrices)
        dropout: Any = module.lora_dropout[active_adapter]
        inner = linear(dropout(x).to(dtype), down) * module.scaling[active_adapter]
        return torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), up.t()).view_as(result)


def prepare_adapter(model: torch.nn.Module) -> None:
    """Make the trained weights float32, and the updates of plain LoRA layers fused ones. Other variants, such as DoRA,
    stay PEFT's own."""
    # TRL makes the adapter of a 4-bit base bfloat16.
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    for layer in model.modules():
        if not isinstance(layer, Linear | Linear4bit) or layer.fan_in_fan_out or layer.lora_variant:
            continue
        if all(up.bias is None for up in layer.lora_B.values()):
            layer.cast_input_dtype_enabled = False
            layer.lora_variant = {name: FusedUpdate() for name in layer.lora_A}
