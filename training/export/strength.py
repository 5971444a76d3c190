"""Bakes the strength of an adapter into its files: `python -m training export RUN --strength 0.75`

The output of a LoRA layer is `lora_alpha / r` times B A x (`/ sqrt(r)` with rsLoRA), so a factor on lora_alpha is a
factor on the adapter, in PEFT's files, in the GGUF adapter and in merged models alike.
"""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from inference.engines import MAX_STRENGTH
from inference.errors import LabError
from training.export.exportable import adapter_file_obstacle
from training.export.model_folder import is_adapter
from training.run_record import read_run_record, write_run_record

# What is made of the weights, or measured on them: not copied.
MADE_OF_WEIGHTS = ("*.gguf", "evaluation.*", "strengths.png", "comparison.json", "adapter_config.json", "README.md")
MEASURED = ("parity", "comparison", "figures", "evaluation", "answers", "samples", "reproduction")


def with_strength(folder: Path, strength: float) -> Path:
    """A copy of an adapter's folder beside it, whose adapter at strength 1 is this one at `strength`; the folder itself
    for 1. The run record says so and has no figures of the original.

    Raises LabError if the strength is out of range, or if llama.cpp could not apply the adapter.
    """
    if strength == 1:
        return folder
    if not 0 < strength <= MAX_STRENGTH:
        raise LabError(f"The strength can't be {strength:g}: use a number above 0, up to {MAX_STRENGTH}.")
    if not is_adapter(folder):
        raise LabError(f"{folder.name} has all weights and no adapter, so it has no strength: leave out --strength.")
    if obstacle := adapter_file_obstacle(folder):
        raise LabError(f"The strength of {folder.name} can't be changed, because {obstacle}: leave out --strength.")
    out = folder.resolve().with_name(f"{folder.resolve().name}-strength-{strength:g}")
    out.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in MADE_OF_WEIGHTS):
            shutil.copy(path, out)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    text = json.dumps(scaled(config, strength), indent=2) + "\n"
    (out / "adapter_config.json").write_text(text, encoding="utf-8")
    record = read_run_record(folder)
    kept = {name: value for name, value in record.items() if name not in MEASURED}
    write_run_record(out, kept | {"strength": record.get("strength", 1.0) * strength})
    return out


def scaled(config: dict[str, Any], strength: float) -> dict[str, Any]:
    """PEFT's configuration of the adapter at `strength`: all its alphas times that."""
    patterns = {layer: alpha * strength for layer, alpha in (config.get("alpha_pattern") or {}).items()}
    return config | {"lora_alpha": config["lora_alpha"] * strength, "alpha_pattern": patterns}
