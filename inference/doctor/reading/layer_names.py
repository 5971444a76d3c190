"""One name for a layer in both forms, and the order of rows in which they differ."""

from __future__ import annotations

import re

import numpy as np

KINDS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
BY_LAST_PART = {name.rpartition(".")[2]: kind for name, kind in KINDS.items()}
WHOLE = {"embed_tokens": "token_embd", "lm_head": "output"}
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
# llama.cpp rotates neighbouring values of queries and keys in these architectures, and transformers the two halves of a
# head. So the converter changes the order of their rows.
PERMUTED = ("llama", "granite")


def gguf_name(name: str) -> str:
    """The name in GGUF of a layer or tensor in safetensors; the same name if it is not known."""
    layer, _, end = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    if (last := layer.rpartition(".")[2]) in WHOLE:
        found = WHOLE[last]
    elif (match := LAYER.search(layer)) and match[2] in KINDS:
        found = f"blk.{match[1]}.{KINDS[match[2]]}"
    else:
        return name
    return f"{found}.{end}" if end else found


def is_permuted(architecture: str, layer: str) -> bool:
    """Whether the rows of a layer, or of its weight, have another order in GGUF."""
    return architecture in PERMUTED and layer.removesuffix(".weight").endswith(("attn_q", "attn_k"))


def to_gguf_order(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows (n, …) of queries or keys in the order of safetensors → in that of GGUF. Source: `permute` of llama.cpp's
    converter, which swaps the two halves of a head with the pairs."""
    return rows.reshape(-1, 2, head_size // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def from_gguf_order(rows: np.ndarray, head_size: int) -> np.ndarray:
    """The inverse of `to_gguf_order`."""
    return rows.reshape(-1, head_size // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
