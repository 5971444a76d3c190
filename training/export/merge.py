"""An adapter and its base as one model, in 16 bits: the source of the merged GGUF files, and a model for vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from inference.errors import LabError
from training.export.model_folder import base_of, is_adapter, load_model, own_template, tokenizer_folder

TOKENIZER = ("*token*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model")
EMBEDDINGS = ("get_input_embeddings", "get_output_embeddings")
PLAIN_LAYERS = (torch.nn.Embedding, torch.nn.Linear)


def merge(folder: Path, out: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write a model folder's complete model: weights in `dtype`, configuration, tokenizer, chat template and generation
    settings. Takes 2 bytes of memory and of disk for each parameter.

    float16 represents bfloat16 weights exactly in their usual range, because it has more digits. PEFT adds the float32
    update with a single rounding. So the sum is as exact as the f16 GGUF that is made of it.
    """
    from safetensors import SafetensorError

    model: Any = load_model(folder, dtype)
    if is_adapter(folder):
        untie_adapted_embeddings(model)
        model = model.merge_and_unload()
    try:
        model.save_pretrained(out)
    except SafetensorError as error:
        raise LabError(
            f"The merged model of {folder.name} cannot be saved ({error}): make room on the disk."
        ) from error
    copy_tokenizer(folder, out)


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy what a complete model needs beside its weights: tokenizer, chat template and generation settings."""
    base = base_of(folder)
    sources = [base.folder(weights=False)] if base else []
    for source in [*sources, tokenizer_folder(folder)]:
        for path in (path for pattern in (*TOKENIZER, "generation_config.json") for path in source.glob(pattern)):
            shutil.copy(path, out)
    if template := own_template(folder):
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = out / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.pop("_name_or_path", None) is not None:  # a path of this machine
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def untie_adapted_embeddings(model: Any) -> None:
    """Give the output layer weights of its own if they are the embeddings' and an adapter is on one of the two. A merge
    changes the weights in place, and so would change both."""
    inner = model.get_base_model()
    layers = [getattr(inner, name)() for name in EMBEDDINGS]
    if all(isinstance(layer, PLAIN_LAYERS) for layer in layers if layer is not None):
        return
    seen: set[int] = set()
    for module in inner.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and id(weight) in seen:
                setattr(module, name, torch.nn.Parameter(weight.detach().clone(), requires_grad=False))
            seen.add(id(weight))
    inner.config.get_text_config().tie_word_embeddings = False
    inner.config.tie_word_embeddings = False


def storage_dtype(folder: Path) -> torch.dtype:
    """The 16-bit dtype of a merged model: that of its base's weights. float16 for a base in 32 bits, because it has
    more digits than bfloat16."""
    base = base_of(folder)
    config = json.loads(((base.folder(weights=False) if base else folder) / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype")
    return torch.bfloat16 if name == "bfloat16" else torch.float16
