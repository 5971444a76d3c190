"""LoRA adapters as PEFT writes them: from a folder to the matrices of each layer, or a sentence on what is wrong.

A folder may hold `adapter_config.json` and `adapter_model.safetensors`, and in them plain LoRA of the base it is for,
nothing else: no pickle is opened and no code that comes with an adapter runs. PEFT reads the configuration and says
which tensors belong to it; it does not run them. Putting them on a model is left to the PyTorch engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from inference import catalog
from inference.errors import LabError

LORA_TENSORS = (".lora_A.weight", ".lora_B.weight")
# These start from a changed base, which the adapter's file does not hold.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


@contextmanager
def translate_adapter_errors(folder: Path) -> Iterator[None]:
    """What goes wrong with an adapter's files, in a sentence."""
    try:
        yield
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"The adapter {folder.name} can't be read ({reason}): fetch or export it again.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise LabError(
            f"The adapter {folder.name} doesn't fit its base ({reason}): choose the base it was trained on."
        ) from error


def check_adapter_files(folder: Path) -> None:
    """A folder with a configuration and safetensors; anything else is refused by name."""
    if not folder.is_dir():
        raise LabError(f"The adapter {folder.name} is no folder on this disk: fetch or export it again.")
    missing = [f for f in ("adapter_config.json", "adapter_model.safetensors") if not (folder / f).is_file()]
    if missing and (folder / "adapter_model.bin").is_file():
        raise LabError(
            f"The adapter {folder.name} is a pickle (adapter_model.bin), which can run any code when it is opened: "
            "save it as safetensors."
        )
    if missing:
        raise LabError(f"The adapter {folder.name} has no {missing[0]}: fetch or export it again.")


def read_adapter(folder: Path, base: PretrainedConfig) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Each adapted layer's matrices (r, in) and (out, r), the second times its scaling. Raises LabError where the file
    doesn't hold exactly the tensors, in the shapes, that its configuration makes on this base."""
    check_adapter_files(folder)
    with translate_adapter_errors(folder):
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise LabError(f"The adapter {folder.name} is no LoRA ({config.peft_type}): choose one that is.")
        if min([config.r, *config.rank_pattern.values()]) < 1:
            raise LabError(f"The adapter {folder.name} has rank {config.r}, so it changes nothing: export it again.")
        start = config.init_lora_weights
        if isinstance(start, str) and start.startswith(CHANGED_BASE):
            raise LabError(f"The adapter {folder.name} began as {start}, on a changed base: convert it to plain LoRA.")
        config.init_lora_weights, config.inference_mode = True, True
        with torch.device("meta"):  # shapes without memory
            bare = AutoModelForCausalLM.from_config(base)
            config.base_model_name_or_path = bare.name_or_path  # the trainer's name of it, else warned about
            made = get_peft_model(bare, config, low_cpu_mem_usage=True)
        expected = {name: list(tensor.shape) for name, tensor in get_peft_model_state_dict(made).items()}
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            names = file.keys()
            found = {name: list(file.get_slice(name).get_shape()) for name in names}
        check_tensors(folder, expected, found)
        tensors = load_file(folder / "adapter_model.safetensors")
        layers = [name.removesuffix(LORA_TENSORS[0]) for name in tensors if name.endswith(LORA_TENSORS[0])]
        return {
            layer.removeprefix("base_model.model."): (
                tensors[layer + LORA_TENSORS[0]],
                tensors[layer + LORA_TENSORS[1]].float() * made.get_submodule(layer).scaling["default"],
            )
            for layer in layers
        }


def check_tensors(folder: Path, expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """Refuse an adapter whose file holds other tensors than plain LoRA on this base has."""
    if strange := sorted(found.keys() - expected.keys() | {n for n in found if not n.endswith(LORA_TENSORS)}):
        raise LabError(
            f"The adapter {folder.name} has tensors that are no LoRA of this base ({shorten(strange[0])}): "
            "choose the base it was trained on, or train it again as plain LoRA."
        )
    if missing := sorted(expected.keys() - found.keys()):
        raise LabError(f"The adapter {folder.name} lacks tensors ({shorten(missing[0])}): fetch or export it again.")
    if other := next((name for name in expected if expected[name] != found[name]), None):
        raise LabError(
            f"The adapter {folder.name} doesn't fit the base ({shorten(other)} is {found[other]}, the base needs "
            f"{expected[other]}): choose the base it was trained on."
        )


def shorten(name: str) -> str:
    """A tensor's name without what all have in common, and without what a terminal or a page can't show."""
    return catalog.shorten(name.removeprefix("base_model.model.").removeprefix("model."), 80)
