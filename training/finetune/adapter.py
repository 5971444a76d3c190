"""The adapter's part of a step: float32 weights, but no pass over the activations for it.

The weights of LoRA (Hu et al. 2021) and their moments are float32, because bfloat16 rounds most small updates away. In
that case PEFT casts the input of each layer to float32 and its output back, and adds the update in two more passes over
the output. Here the weights are cast, which are a hundred times smaller, and a layer with its update is one function
with its own gradient: the products add to what is there, without passes of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import Linear, Linear4bit
from torch.nn.functional import linear


class AdaptedLayer(torch.autograd.Function):
    """W x + b + scaling · B A x, with the gradients for x, A and B. W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        base: torch.nn.Module,
    ) -> torch.Tensor:
        """Compute the layer.

        Args:
            x: (…, in features).
            dropped: x after dropout, or None without one.
            down: A, (rank, in features).
            up: B, (out features, rank).
            scaling: alpha / rank, or as the adapter's kind has it.
            base: computes W x + b.

        Returns:
            (…, out features), in the dtype of the result of `base`.
        """
        result: torch.Tensor = base(x)
        dtype = result.dtype
        source = (x if dropped is None else dropped).to(dtype)
        small_down, small_up = down.to(dtype), up.to(dtype)
        inner = linear(source, small_down).mul_(scaling).flatten(0, -2)
        result.view(-1, result.shape[-1]).addmm_(inner, small_up.t())  # a view, or an error
        ctx.save_for_backward(source, inner, small_down, small_up)
        ctx.scaling, ctx.base, ctx.is_dropped, ctx.dtypes = scaling, base, dropped is not None, (x.dtype, down.dtype)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients for x, `dropped`, A and B from `gradient`, that of the result, (…, out features)."""
        source, inner, down, up = ctx.saved_tensors
        gradient = gradient.to(inner.dtype)
        rows = gradient.flatten(0, -2)
        inner_rows = (rows @ up).mul_(ctx.scaling)
        for_up = (inner.t() @ rows).t()
        for_down = inner_rows.t() @ source.flatten(0, -2)
        for_x = for_dropped = None
        if ctx.needs_input_grad[0]:
            for_x = rows @ dense_weight(ctx.base, rows.dtype)
            if ctx.is_dropped:
                for_dropped = (inner_rows @ down).view_as(source).to(ctx.dtypes[0])
            else:
                for_x.addmm_(inner_rows, down)
            for_x = for_x.view_as(source).to(ctx.dtypes[0])
        return for_x, for_dropped, for_down.to(ctx.dtypes[1]), for_up.to(ctx.dtypes[1]), None, None


def dense_weight(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a linear layer (out features, in features), from 4 bits if it has those."""
    state = getattr(base.weight, "quant_state", None)
    weight: torch.Tensor = base.weight if state is None else dequantize_4bit(base.weight, state)
    return weight.to(dtype)


def adapted_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """PEFT's forward for a LoRA layer with one adapter that is switched on. Everything else is PEFT's own."""
    if args or kwargs or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return type(layer).forward(layer, x, *args, **kwargs)
    (name,) = layer.active_adapters
    dropout = layer.lora_dropout[name]
    dropped = None if isinstance(dropout, torch.nn.Identity) else dropout(x)
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    result: torch.Tensor = AdaptedLayer.apply(x, dropped, down, up, layer.scaling[name], layer.base_layer)
    return result


def prepare_adapter(model: torch.nn.Module) -> None:
    """Make the trained weights float32, and plain LoRA layers one function. Other variants, such as DoRA, stay PEFT's
    own."""
    # TRL makes the adapter of a 4-bit base bfloat16.
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data
    for layer in model.modules():
        if not isinstance(layer, Linear | Linear4bit) or layer.fan_in_fan_out or layer.lora_variant:
            continue
        frozen = not any(weight.requires_grad for weight in layer.base_layer.parameters())
        if frozen and all(up.bias is None for up in layer.lora_B.values()):
            layer.forward = partial(adapted_forward, layer)  # type: ignore[method-assign]
