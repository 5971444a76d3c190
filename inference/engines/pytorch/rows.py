"""Questions in the rows of one batch: their KV cache, the attention over it, and linear layers with all adapters on.

No shape depends on who asks or on which adapter a row is for, so that a step can be compiled and replayed as a CUDA
graph. PEFT's own way to mix adapters (`adapter_names`) loops over Python lists in each layer, which would be compiled
anew for each mix. Here the adapters of a layer lie side by side in one pair of matrices and a row is multiplied by the
columns of its own, the same sum in two matrix products of fixed shape.

Tensors only: which question has which row and which adapter which columns is the PyTorch engine's to say.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, PretrainedConfig

SHARE_OF_MEMORY = 0.8  # of what is free on the GPU, for weights in 16 bits; the rest is for the cache
ATTENTION = "grouped_sdpa"
# torch's attention but for cuDNN's, which plans anew for each new length: a third of a training step where lengths
# differ, on an H100.
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """torch's fused attention, without copies of keys and values for the query heads that share them (GQA): at one
    token those heads take the place of positions. `query` (rows, heads, tokens, d), `key` (rows, key heads, window, d).
    """
    groups, (rows, heads, tokens, _) = query.shape[1] // key.shape[1], query.shape
    if tokens == 1:
        query = query.reshape(rows, key.shape[1], groups, -1)
    else:  # torch's own GQA leaves the fused kernels where there is a mask
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


class RowCache:
    """A static KV cache with one row for each question: keys and values (rows, key heads, `length`, d) of each layer.
    As many rows as fit into the GPU's free memory, `most` at most."""

    def __init__(self, config: PretrainedConfig, most: int, length: int, like: torch.Tensor) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.size = most
        if like.device.type == "cuda":
            row = 2 * config.num_hidden_layers * heads * length * width * like.element_size()
            self.size = max(1, min(most, int(SHARE_OF_MEMORY * torch.cuda.mem_get_info(like.device)[0] / row)))
        shape = (self.size, heads, length, width)
        self.keys = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        for tensor in [*self.keys, *self.values]:
            torch._dynamo.mark_static_address(tensor)  # else a CUDA graph copies it at each replay


class CachePass:
    """The cache as one forward pass meets it, where a model's attention calls `update`. The pass writes `positions`
    (n, tokens) of the n rows from `first` on, whose numbers are `rows`, and sees the first `window` positions."""

    def __init__(self, cache: RowCache, first: int, rows: torch.Tensor, positions: torch.Tensor, window: int) -> None:
        self.cache, self.place = cache, (rows[:, None], slice(None), positions)
        self.seen = (slice(first, first + len(positions)), slice(None), slice(0, window))

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values (rows, key heads, tokens, d), return all that is seen."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.place], values[self.place] = key.transpose(1, 2), value.transpose(1, 2)
        return keys[self.seen], values[self.seen]

    def get_seq_length(self, *_: object) -> int:
        """Asked for by models that count positions themselves; they are given here."""
        return 0


class MixedLora(nn.Module):
    """A linear layer and all adapters on it: `a` (columns, in), `b` (out, columns). `mine` (rows, columns) is 1 where a
    column belongs to the row's adapter; one tensor for all layers."""

    def __init__(self, linear: nn.Module, mine: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("mine", mine, persistent=False)
        self.register_buffer("a", mine.new_zeros(mine.shape[1], linear.in_features), persistent=False)
        self.register_buffer("b", mine.new_zeros(linear.out_features, mine.shape[1]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` (rows, tokens, in)."""
        low = nn.functional.linear(x, self.a) * self.mine[: len(x), None]
        return self.linear(x) + nn.functional.linear(low, self.b)

    def grow(self, mine: torch.Tensor) -> None:
        """Room for as many columns as the new `mine` has."""
        more = mine.shape[1] - len(self.a)
        self.mine = mine
        self.a, self.b = nn.functional.pad(self.a, (0, 0, 0, more)), nn.functional.pad(self.b, (0, more))

    def put(self, start: int, a: torch.Tensor, b: torch.Tensor) -> None:
        """An adapter's `a` (r, in) and `b` (out, r), its scaling in it, from column `start` on."""
        self.a[start : start + len(a)] = a.to(self.a)
        self.b[:, start : start + len(a)] = b.to(self.b)
