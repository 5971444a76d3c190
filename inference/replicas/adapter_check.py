"""The check of an adapter before a server opens it: plain LoRA in safetensors, ranks that fit, finite numbers.

In vLLM on a CPU, one adapter that is not finite made the answers of all adapters beside it wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from inference.errors import LabError
from inference.formats.adapter_config import read_adapter_config
from inference.validation import reason_of, shorten

RANK_AXIS = {".lora_A.weight": 0, ".lora_B.weight": 1}  # of A (r, in) and B (out, r)
# The bits of a number's exponent, which are all set if it is not finite (IEEE 754), for the types of weights.
EXPONENTS = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def check_adapter(folder: Path, name: str) -> None:
    """Raise LabError unless a folder holds plain LoRA of finite numbers with the ranks of its configuration. The server
    compares the shapes with its base, and the rank with its limit."""
    config = read_adapter_config(folder)
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    try:
        tensors = deserialize((folder / "adapter_model.safetensors").read_bytes())
    except SafetensorError as error:
        raise LabError(f"The adapter {name} is damaged ({reason_of(error)}): publish it again.") from error
    if not tensors:
        raise LabError(f"The adapter {name} has no tensors and changes nothing: publish it again.")
    for key, tensor in tensors:
        axis = next((axis for end, axis in RANK_AXIS.items() if key.endswith(end)), None)
        if axis is None or len(tensor["shape"]) != 2 or tensor["shape"][axis] not in ranks:
            raise LabError(
                f"The adapter {name} has a tensor that its configuration does not describe ({shorten(key)}): export "
                "and publish it again."
            )
        if not is_finite(tensor):
            raise LabError(
                f"The adapter {name} has numbers that are not finite ({shorten(key)}): train and publish it again."
            )


def is_finite(tensor: dict[str, Any]) -> bool:
    """Whether all numbers of a tensor are finite. One of a type that weights do not have counts as not finite."""
    if tensor["dtype"] not in EXPONENTS:
        return False
    kind, bits = EXPONENTS[tensor["dtype"]]
    return not np.any(np.frombuffer(tensor["data"], kind) & bits == bits)
