"""Attention over the conversations of a batch in one row without padding: each attends to itself only.

TRL joins the rows of a batch into one long row and passes where each conversation begins. torch's fused attention
would need a mask as long and as wide as that row, and would compute all of it. The variable-length form
(FlashAttention 2; Dao 2023) computes only what counts. It needs an Ampere GPU or newer and 16 bits; elsewhere the
conversations go through the fused attention one by one.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

PACKED = "packed_varlen"
# Several query heads share a key head. torch 2.11 takes them as they are, later versions ask for this flag.
GROUPED: Any = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}


def has_kernel(queries: torch.Tensor) -> bool:
    """Whether torch has the variable-length kernel for these queries."""
    return queries.is_cuda and queries.dtype is torch.bfloat16


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation. See `transformers.AttentionInterface`.

    `query` is (1, heads, tokens, d), `key` and `value` are (1, key heads, tokens, d). TRL's collator gives the borders
    of the conversations as `cu_seq_lens_q`, int32 (conversations + 1,), and the longest length as `max_length_q`.
    Returns (1, tokens, heads, d) and no attention weights.
    """
    rows = [query, key, value]
    if torch.is_autocast_enabled(query.device.type):  # full fine-tuning holds float32 weights
        rows = [row.to(torch.get_autocast_dtype(query.device.type)) for row in rows]
    queries, keys, values = (row[0].transpose(0, 1) for row in rows)  # views, as the projections wrote them
    if has_kernel(queries):
        out = varlen.varlen_attn(
            queries, keys, values, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
            scale=scaling, window_size=(-1, 0), **GROUPED,
        )  # fmt: skip
        assert isinstance(out, torch.Tensor)  # a tuple only if more than the output is asked for
        return out[None], None
    if query.is_cuda:  # the fused attention of older GPUs takes no groups
        groups = query.shape[1] // key.shape[1]
        rows[1:] = [row.repeat_interleave(groups, 1) for row in rows[1:]]
    lengths = cu_seq_lens_q.diff().tolist()
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=not query.is_cuda)
        for q, k, v in zip(*(row.split(lengths, dim=2) for row in rows), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, flash_attention_mask)
