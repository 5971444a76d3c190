"""A run that continues an earlier run's adapter: the recipe's field `start`."""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from inference.errors import LabError
from inference.formats.base_names import same_base
from inference.settings import PROJECT
from training.recipe import Recipe


def start_folder(recipe: Recipe) -> Path:
    """The folder that `start` names, relative to the project. Raises LabError if it holds no adapter."""
    folder = PROJECT / str(recipe.start)
    if not (folder / "adapter_config.json").is_file():
        raise LabError(f"start: {recipe.start} holds no adapter: name a run's folder, or remove the field.")
    return folder


def check_start(recipe: Recipe) -> None:
    """Raise LabError if the adapter of `start` is on another base or has another shape than the recipe says."""
    if recipe.start is None:
        return
    if recipe.method == "full":
        raise LabError("“start” continues an adapter, and method=full trains none: remove one of the two.")
    config = json.loads((start_folder(recipe) / "adapter_config.json").read_text(encoding="utf-8"))
    if not same_base(config.get("base_model_name_or_path") or "", recipe.base):
        raise LabError(
            f"The adapter {recipe.start} is on {config.get('base_model_name_or_path')}, not on {recipe.base}: name its "
            "base."
        )
    shape = (config.get("r"), config.get("lora_alpha"))
    if shape != (recipe.lora.r, recipe.lora.alpha):
        raise LabError(
            f"The adapter {recipe.start} has r {shape[0]} and alpha {shape[1]}: set lora.r={shape[0]} and "
            f"lora.alpha={shape[1]}."
        )


def load_start(recipe: Recipe, base: PreTrainedModel) -> PeftModel:
    """The base with the adapter of `start` on it, ready to be trained. Raises LabError if it is not readable."""
    try:
        return PeftModel.from_pretrained(base, start_folder(recipe), is_trainable=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"The adapter {recipe.start} can't be loaded ({reason}): check its files.") from error
