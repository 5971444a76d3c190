"""A model folder in PyTorch: its contents, its base, its tokenizer and chat template; loading it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.engines.chat_template.named import find_template
from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from training.recipe import locate
from training.run_record import read_run_record

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a base's repository needs to be converted and loaded. Meta's and Mistral's own formats repeat the weights.
CONFIGURATION = ("*.json", "*.jinja", "*.model", "*.txt")
REPEATED_WEIGHTS = ("original/*", "consolidated*", "onnx/*")


@dataclass(frozen=True)
class Base:
    """The model that another one was made from.

    Attributes:
        name: a Hub repository, or a folder, as the recipe names it.
        template: the chat template that the recipe gives it; None for its own.
    """

    name: str
    template: str | None = None

    def folder(self, weights: bool = True) -> Path:
        """Its folder. Downloads it from the Hub into its cache if it is not on this disk; without `weights` only its
        configuration. Raises LabError if that fails."""
        location = Path(locate(self.name))
        if location.is_dir():
            return location
        from huggingface_hub import snapshot_download

        wanted = [*CONFIGURATION, "*.safetensors"] if weights else [*CONFIGURATION]
        with translate_hub_errors(self.name, self.name):
            return Path(snapshot_download(self.name, allow_patterns=wanted, ignore_patterns=[*REPEATED_WEIGHTS]))


def is_adapter(folder: Path) -> bool:
    """Whether a model folder holds an adapter, not a model with all weights."""
    return (folder / "adapter_config.json").is_file()


def recorded_recipe(folder: Path) -> dict[str, Any]:
    """The recipe in a folder's run record; empty if there is none."""
    return read_run_record(folder).get("recipe") or {} if (folder / "run.json").is_file() else {}


def model_name(folder: Path) -> str:
    """The name of the exported files: the recipe's title, or the folder's name."""
    return recorded_recipe(folder).get("title") or folder.name


def base_of(folder: Path) -> Base | None:
    """The base of a model folder, from its run record or from the adapter's configuration. None for a model that was
    not made from another one."""
    recipe = recorded_recipe(folder)
    name = recipe.get("base")
    if not name and is_adapter(folder):
        name = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not name:
            raise LabError(f"{folder.name} does not name its base: add base_model_name_or_path to adapter_config.json.")
    return Base(name, own_template(folder)) if name else None


def own_template(folder: Path) -> str | None:
    """The chat template that a model folder has or that its recipe names; None if the base's is used. Raises LabError
    if the recipe names one that is not there."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    name = recorded_recipe(folder).get("chat_template")
    return find_template(name) if name else None


def public_name(base: str) -> str:
    """The Hub repository of a base; "" for a folder, whose name means nothing on another machine."""
    is_repository = base.count("/") == 1 and base[0] not in "/.~" and not base.endswith("/") and "\\" not in base
    return base if is_repository and not Path(locate(base)).is_dir() else ""


def tokenizer_folder(folder: Path) -> Path:
    """The folder with a model's tokenizer: its own, or its base's."""
    base = base_of(folder)
    if base is None or (folder / "tokenizer_config.json").is_file():
        return folder
    return base.folder(weights=False)


def load_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with the chat template that it answers with: `template`, or its own. Raises
    LabError if it has none, or cannot be loaded."""
    from transformers import AutoTokenizer

    source = tokenizer_folder(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"The tokenizer of {folder.name} cannot be loaded ({reason}): check its files.") from error
    tokenizer.chat_template = template or own_template(folder) or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise LabError(
            f"{folder.name} has no chat template: name one in the recipe, such as chat_template: chatml, or add "
            "chat_template.jinja to the folder."
        )
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """The model of a folder on the CPU, not quantized; an adapter on its base. Raises LabError if it is incomplete."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = base_of(folder) if is_adapter(folder) else None
    source = base.folder() if base else folder
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map="cpu")
        return PeftModel.from_pretrained(model, folder) if base else model
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = f"{folder.name} cannot be loaded ({str(error).splitlines()[0]}): check that it is complete."
        raise LabError(reason) from error
