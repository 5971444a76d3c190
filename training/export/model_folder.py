"""A model folder in PyTorch: its contents, its base and its tokenizer; loading and merging."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.recipe import locate
from training.run_record import read_run_record

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

# What a base's repository needs to be converted and loaded. Meta's and Mistral's own formats repeat the weights.
CONFIGURATION = ("*.json", "*.jinja", "*.model", "*.txt")
REPEATED_WEIGHTS = ("original/*", "consolidated*", "onnx/*")
TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model", "generation_config.json")


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter, not a model with all weights."""
    return (folder / "adapter_config.json").is_file()


def recorded_recipe(folder: Path) -> dict[str, Any]:
    """The recipe in a folder's run record; empty if there is none."""
    return read_run_record(folder).get("recipe", {}) if (folder / "run.json").is_file() else {}


def model_name(folder: Path) -> str:
    """The name of the exported files: the recipe's title, or the folder's name."""
    return recorded_recipe(folder).get("title") or folder.name


def base_folder(folder: Path, weights: bool = True) -> Path:
    """The folder of an adapter's base. Downloads it from the Hub into its cache if it is not on this disk; without
    `weights` only its configuration. Raises LabError if that fails."""
    base = locate(read_run_record(folder)["recipe"]["base"])
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    wanted = [*CONFIGURATION, "*.safetensors"] if weights else [*CONFIGURATION]
    with translate_hub_errors(base, base):
        return Path(snapshot_download(base, allow_patterns=wanted, ignore_patterns=[*REPEATED_WEIGHTS]))


def tokenizer_folder(folder: Path) -> Path:
    """The folder with a model's tokenizer and chat template: its own, or its base's."""
    if not is_adapter(folder) or (folder / "tokenizer_config.json").is_file():
        return folder
    return base_folder(folder, weights=False)


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """The model of a folder on the CPU, not quantized; an adapter on its base. Raises LabError if it is incomplete."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source = base_folder(folder) if is_adapter(folder) else folder
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map="cpu")
        return PeftModel.from_pretrained(model, folder) if is_adapter(folder) else model
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"{folder.name} cannot be loaded ({str(error).splitlines()[0]}): check that it is complete."
        raise LabError(reason) from error


def merge(folder: Path, out: Path) -> None:
    """Write base and adapter as one model in float16. Takes 2 bytes of memory and of disk for each parameter.

    float16 represents bfloat16 weights exactly in their usual range, because it has more digits. PEFT adds the float32
    update with a single rounding. So the sum is as exact as the f16 GGUF that is made of it.
    """
    import torch
    from safetensors import SafetensorError

    model: Any = load_model(folder, torch.float16)
    try:
        model.merge_and_unload().save_pretrained(out)
    except SafetensorError as error:
        raise LabError(
            f"The merged model of {folder.name} cannot be saved ({error}): make room on the disk."
        ) from error
    for source in (base_folder(folder), tokenizer_folder(folder)):
        for pattern in TOKENIZER:
            for path in source.glob(pattern):
                shutil.copy(path, out)
