"""The KV cache of a batch on PyTorch: one row for each request, and the attention over it.

Shapes do not depend on the requests, so that a step can be captured and replayed as a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, PretrainedConfig

MEMORY_SHARE = 0.8  # of the GPU's free memory: for 16-bit weights, then for the cache
ATTENTION = "grouped_sdpa"
# torch's attention kernels except cuDNN's. cuDNN makes a new plan for each new length: a third of the time of a
# training step with mixed lengths on an H100.
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
    """Attention for grouped query heads (GQA) that copies no keys and values for one token: the query heads of a group
    take the place of positions. On a GPU, plain matrix products are then faster than torch's fused kernels, which
    split no window over the GPU's processors (2.9 instead of 6.1 ms a step of a 1B with a window of 4,096 on an H100).

    Args:
        query: (rows, heads, tokens, d).
        key, value: (rows, key heads, window, d).
        attention_mask: bool, (rows, 1, tokens, window).

    Returns:
        The output (rows, tokens, heads, d), and None for the attention weights.
    """
    rows, heads, tokens, _d = query.shape
    if tokens == 1:
        query = query.reshape(rows, key.shape[1], heads // key.shape[1], -1)
        if query.is_cuda:
            scores = torch.matmul(query, key.transpose(2, 3))
            scores = (scores * (scaling or query.shape[-1] ** -0.5)).masked_fill(~attention_mask, -torch.inf)
            out = torch.matmul(scores.softmax(-1), value)
            return out.reshape(rows, heads, 1, -1).transpose(1, 2), None
    else:  # torch's own GQA does not use the fused kernels if there is a mask
        groups = heads // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, grouped_attention)


class RowCache:
    """A static KV cache: `keys` and `values` have a tensor (rows, key heads, `length`, d) for each layer. Its last
    position is never attended to: padding is written there.

    On a GPU it has as many rows as fit into MEMORY_SHARE of the free memory, at least 1 and at most `max_rows`. `like`
    gives dtype and device.
    """

    def __init__(self, config: PretrainedConfig, max_rows: int, length: int, like: torch.Tensor) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.rows = max_rows
        if like.device.type == "cuda":
            row_bytes = 2 * config.num_hidden_layers * heads * length * width * like.element_size()
            free = MEMORY_SHARE * torch.cuda.mem_get_info(like.device)[0]
            self.rows = max(1, min(max_rows, int(free / row_bytes)))
        shape = (self.rows, heads, length, width)
        self.numbers = torch.arange(self.rows, device=like.device)
        self.keys = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.num_hidden_layers)]


class CachePass:
    """The cache of one forward pass, passed to a model as its `past_key_values`.

    Args:
        rows: the rows of the pass: a slice, or int64 (n,).
        positions: int64 (n, tokens), where the pass writes keys and values.
        window: the pass attends to the positions below it.
    """

    def __init__(self, cache: RowCache, rows: slice | torch.Tensor, positions: torch.Tensor, window: int) -> None:
        numbers = cache.numbers[rows] if isinstance(rows, slice) else rows
        self.cache, self.written = cache, (numbers[:, None], slice(None), positions)
        self.visible = (rows, slice(None), slice(0, window))

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values (n, key heads, tokens, d). Returns all visible ones (n, key heads,
        window, d)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.written], values[self.written] = key.transpose(1, 2), value.transpose(1, 2)
        return keys[self.visible], values[self.visible]

    def get_seq_length(self, *_: object) -> int:
        """0: models use it to count positions, but here the positions are passed explicitly."""
        return 0
