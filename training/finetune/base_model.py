"""Loads what a run starts from: the base's configuration, weights and tokenizer, and an adapter that it continues."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from inference.engines.chat_template.named import find_template
from inference.errors import LabError
from inference.formats.base_names import same_base
from inference.hub.client import translate_hub_errors
from inference.settings import PROJECT
from training.finetune.attention import PACKED
from training.recipe import Recipe


def compute_dtype() -> torch.dtype:
    """The dtype that this machine computes in: bfloat16 if it is fast, else float16 on a GPU and float32 on a CPU. A T4
    only emulates bfloat16."""
    if not torch.cuda.is_available():
        return torch.bfloat16 if torch.cpu.get_capabilities().get("avx512_bf16") else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


@contextmanager
def translate_base_errors(base: str) -> Iterator[None]:
    """Turn the exceptions of loading a base into a LabError."""
    try:
        with translate_hub_errors(base, "weights"):
            try:
                yield
            except OSError as error:
                raise root_cause(error) from error
    except (ValueError, KeyError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise LabError(f"The base {base} can't be loaded ({reason}): check its name, or try again.") from error


def root_cause(error: OSError) -> BaseException:
    """The error of the Hub or the system that transformers wraps, as it tells more; else a ValueError with the text."""
    cause: BaseException | None = error
    while cause is not None and type(cause).__module__ == "builtins" and getattr(cause, "errno", None) is None:
        cause = cause.__cause__
    return cause or ValueError(str(error))


def load_config(recipe: Recipe) -> PretrainedConfig:
    """The base's configuration, a few kilobytes. Raises LabError if it is not available, or if it is an adapter."""
    folder = Path(recipe.base_location)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise LabError(
            f"The base {recipe.base} is an adapter: merge it with its own base by `python -m training export "
            f"{recipe.base} --format merged`, and set base={recipe.base}/merged."
        )
    with translate_base_errors(recipe.base):
        return AutoConfig.from_pretrained(recipe.base_location)


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base's tokenizer, with the chat template that the recipe names. Raises LabError if one is not available, or
    if an adapter would need another template than its base has."""
    template = find_template(recipe.chat_template) if recipe.chat_template else None
    with translate_base_errors(recipe.base):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(recipe.base_location)
    own = tokenizer.chat_template
    if template and own and own != template and recipe.method != "full":
        raise LabError(
            f"The base {recipe.base} has a chat template of its own, which engines use with every adapter: remove "
            "chat_template from the recipe, or set method=full."
        )
    tokenizer.chat_template = template or own
    return tokenizer


def load_base(recipe: Recipe, attention: str, sharded: bool = False) -> PreTrainedModel:
    """The base model with a plan's kind of attention. Raises LabError if it is not available.

    QLoRA holds its layers in 4-bit NF4 with double quantization, LoRA in `compute_dtype`; embeddings and norms are in
    `compute_dtype` for both, so that no activation becomes float32. Full fine-tuning needs float32,
    because its updates are too small for 16 bits. If processes hold a part each (`sharded`), the first one loads the
    weights into its main memory, and accelerate distributes them.
    """
    dtype = compute_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    with translate_base_errors(recipe.base):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            recipe.base_location,
            dtype=torch.float32 if recipe.method == "full" else dtype,
            quantization_config=quantization if recipe.method == "qlora" else None,
            device_map=None if sharded else {"": local_rank} if torch.cuda.is_available() else "cpu",
            attn_implementation=PACKED if attention == "varlen" else attention,
        )
    return model


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
    if recipe.objective == "dpo":
        raise LabError("“start” is not possible with objective=dpo: merge the adapter, and name the merged base.")
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


def load_start(recipe: Recipe, model: Any) -> None:
    """Load the weights of `start` into the adapter of a PeftModel. Raises LabError if they do not fit it."""
    from peft import load_peft_weights, set_peft_model_state_dict

    # Not PeftModel.from_pretrained: it would distribute a base on the CPU again.
    try:
        weights = load_peft_weights(str(start_folder(recipe)), device="cpu")
        result: Any = set_peft_model_state_dict(model, weights)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"The adapter {recipe.start} can't be loaded ({reason}): check its files.") from error
    if result.unexpected_keys:
        raise LabError(f"The adapter {recipe.start} has weights that this run has no place for: set peft as it did.")
