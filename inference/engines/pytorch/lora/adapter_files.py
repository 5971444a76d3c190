"""LoRA adapters in PEFT's format: from a folder to the matrices of each layer, or an error message.

A folder must hold `adapter_config.json` and `adapter_model.safetensors` with plain LoRA of its base and nothing else.
No pickle is opened and no code that comes with an adapter runs. PEFT gets the checked fields of the configuration and
tells which tensors belong to it, but does not run them. `mixed_lora` puts the matrices on a model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PretrainedConfig

from inference import validation
from inference.errors import LabError
from inference.formats.adapter_config import AdapterConfig, read_adapter_config

PREFIX, LORA_A, LORA_B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@contextmanager
def translate_adapter_errors(folder: Path) -> Iterator[None]:
    """Raise LabError for the errors that an adapter's files cause."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = validation.reason_of(error)
        raise LabError(f"The adapter {folder.name} can't be read ({reason}): download or export it again.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = validation.reason_of(error)
        raise LabError(
            f"The adapter {folder.name} doesn't fit its base ({reason}): choose the base it was trained on."
        ) from error


def check_adapter_files(folder: Path) -> None:
    """Raise LabError unless the folder has a configuration and safetensors."""
    if not folder.is_dir():
        raise LabError(f"The adapter {folder.name} is not a folder on this disk: download or export it again.")
    missing = [f for f in ("adapter_config.json", "adapter_model.safetensors") if not (folder / f).is_file()]
    if missing and (folder / "adapter_model.bin").is_file():
        raise LabError(
            f"The adapter {folder.name} is a pickle (adapter_model.bin), which can run any code when it is opened: "
            "save it as safetensors."
        )
    if missing:
        raise LabError(f"The adapter {folder.name} has no {missing[0]}: download or export it again.")


def to_peft(config: AdapterConfig, tensors: Iterable[str], base: str) -> LoraConfig:
    """The configuration for PEFT, with the checked fields only.

    `tensors` are the names in the adapter's file. They name the layers if the configuration has a regular expression
    for them, which is not evaluated. `base` is the base's name.
    """
    target, exclude = config.target_modules, config.exclude_modules
    layers, pattern = config.layers_to_transform, config.layers_pattern
    if config.names_layers_by_regex:
        target = [name.removeprefix(PREFIX).removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]
        exclude = layers = pattern = None
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it, so a float is fine
        use_rslora=config.use_rslora,
        target_modules=target,
        exclude_modules=exclude,
        layers_to_transform=layers,
        layers_pattern=pattern,
        rank_pattern=config.rank_pattern or {},
        alpha_pattern=config.alpha_pattern or {},
        inference_mode=True,
        base_model_name_or_path=base,
    )


def read_adapter(
    folder: Path, base: PretrainedConfig, dtype: torch.dtype
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The matrices of each adapted layer in `dtype`, by its name: A (r, in), and B (out, r) times the scaling.

    Raises LabError unless the file holds exactly the tensors, in the shapes, that its configuration makes on this base,
    and only finite numbers: others would reach the answers of all adapters beside it.
    """
    check_adapter_files(folder)
    with translate_adapter_errors(folder):
        config = read_adapter_config(folder)
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in list(file.keys())}
        with torch.device("meta"):  # shapes without memory
            bare = AutoModelForCausalLM.from_config(copy.deepcopy(base))  # nothing here may change the shared one
            peft_config = to_peft(config, found, bare.name_or_path)
            adapted = get_peft_model(bare, peft_config, low_cpu_mem_usage=True)
        expected = {name: list(tensor.shape) for name, tensor in get_peft_model_state_dict(adapted).items()}
        check_tensors(folder, expected, found)
        tensors = load_file(folder / "adapter_model.safetensors")
        matrices = {}
        for layer in (name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)):
            adapted_layer: Any = adapted.get_submodule(layer)
            scaled = tensors[layer + LORA_B].float() * adapted_layer.scaling["default"]
            pair = tensors[layer + LORA_A].to(dtype), scaled.to(dtype)
            if not all(matrix.isfinite().all() for matrix in pair):
                raise LabError(
                    f"The adapter {folder.name} has numbers that are not finite ({shorten(layer)}): download or export "
                    "it again."
                )
            matrices[layer.removeprefix(PREFIX)] = pair
        return matrices


def check_tensors(folder: Path, expected: dict[str, list[int]], found: dict[str, list[int]]) -> None:
    """Raise LabError if a file has other tensors or shapes than plain LoRA on this base."""
    if strange := sorted(found.keys() - expected.keys() | {n for n in found if not n.endswith((LORA_A, LORA_B))}):
        raise LabError(
            f"The adapter {folder.name} has tensors that are not LoRA of this base ({shorten(strange[0])}): "
            "choose the base it was trained on, or train it again as plain LoRA."
        )
    if missing := sorted(expected.keys() - found.keys()):
        raise LabError(f"The adapter {folder.name} lacks tensors ({shorten(missing[0])}): download or export it again.")
    if other := next((name for name in expected if expected[name] != found[name]), None):
        raise LabError(
            f"The adapter {folder.name} doesn't fit the base ({shorten(other)} is {found[other]}, the base needs "
            f"{expected[other]}): choose the base it was trained on."
        )


def shorten(name: str) -> str:
    """A tensor's name without the common prefix and without unprintable characters, at most 80 characters."""
    return validation.shorten(name.removeprefix(PREFIX).removeprefix("model."), 80)
