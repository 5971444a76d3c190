"""The check of an adapter's files before a server opens them: plain LoRA in safetensors, and ranks that fit."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from inference.errors import LabError
from inference.formats.adapter_config import read_adapter_config
from inference.validation import reason_of, shorten

RANK_AXIS = {".lora_A.weight": 0, ".lora_B.weight": 1}  # of A (r, in) and B (out, r)


def check_adapter(folder: Path, name: str) -> None:
    """Raise LabError unless a folder holds plain LoRA with the ranks of its configuration. Reads headers only: the
    server compares the shapes with its base, and the rank with its limit."""
    config = read_adapter_config(folder)
    ranks = {config.r, *(config.rank_pattern or {}).values()}
    try:
        with safe_open(folder / "adapter_model.safetensors", "numpy") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in list(file.keys())}
    except SafetensorError as error:
        raise LabError(f"The adapter {name} is damaged ({reason_of(error)}): publish it again.") from error
    if not shapes:
        raise LabError(f"The adapter {name} has no tensors and changes nothing: publish it again.")
    for key, shape in shapes.items():
        axis = next((axis for end, axis in RANK_AXIS.items() if key.endswith(end)), None)
        if axis is None or len(shape) != 2 or shape[axis] not in ranks:
            raise LabError(
                f"The adapter {name} has a tensor that its configuration does not describe ({shorten(key)}): export "
                "and publish it again."
            )
