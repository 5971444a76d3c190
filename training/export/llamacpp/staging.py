"""A folder for llama.cpp's converters: links to a model's files, with a chat template and a card that names no path.

The converters copy what a folder's README.md says into the GGUF file: name, licence, tags and base models. A README.md
that training wrote can name folders of the machine. So the converters are given a card with what may be public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import metadata_load

from inference.formats.adapter_config import AdapterConfig, read_adapter_config
from inference.formats.gguf_header import SCALED_BY_LAYER
from training.export.model_folder import Base, own_template, public_name

CARD_KEYS = ("license", "license_name", "license_link", "language", "pipeline_tag")
LEFT_OUT = ("README.md", "run.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@contextmanager
def staged_model(source: Path, name: str, base: str | None = None, template: str | None = None) -> Iterator[Path]:
    """A folder with a model's files. `base` is the model that it was made from, `template` replaces its own."""
    template = template or own_template(source)
    with TemporaryDirectory(prefix="convert-") as temporary:
        folder = Path(temporary)
        for path in source.iterdir():
            if path.name not in LEFT_OUT and not (template and path.name in TEMPLATE_FILES):
                (folder / path.name).symlink_to(path.resolve())
        if template:
            (folder / "chat_template.jinja").write_text(without_marks(template), encoding="utf-8")
        write_public_card(folder, {**public_card(source), "model_name": name}, base)
        yield folder


def without_marks(template: str) -> str:
    """A chat template without the marks of the answer's tokens, a statement that only transformers knows. White space
    around them is trimmed as before."""
    return GENERATION.sub(lambda found: f"{found[1]}{'endif' if found[2] else 'if true'}{found[3]}", template)


@contextmanager
def staged_adapter(source: Path, name: str, base: Base) -> Iterator[Path]:
    """A folder with an adapter as llama.cpp computes it: an update of `B A` scaled by alpha / r, with one alpha.

    PEFT's rsLoRA scales by alpha / √r: one other alpha says the same. If layers have alphas of their own (or rsLoRA and
    ranks of their own), each layer's B is multiplied by what is missing.
    """
    config = read_adapter_config(source)
    with TemporaryDirectory(prefix="convert-") as temporary:
        folder = Path(temporary)
        values = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
        single = config.alpha_for_gguf()
        alpha = single if single is not None else config.lora_alpha or 1.0
        values["lora_alpha"] = alpha
        (folder / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
        weights = folder / "adapter_model.safetensors"
        if single is None:
            write_scaled(source / weights.name, weights, config, alpha)
        else:
            weights.symlink_to((source / weights.name).resolve())
        tags = ["lora", *([SCALED_BY_LAYER] if single is None else [])]
        write_public_card(folder, {**public_card(source), "model_name": name, "tags": tags}, base.name)
        yield folder


def write_scaled(source: Path, out: Path, config: AdapterConfig, alpha: float) -> None:
    """Write an adapter's weights with each B multiplied by its layer's scaling over alpha / r of that layer."""
    from safetensors.torch import load_file, save_file

    weights = load_file(source)
    for name, weight in weights.items():
        if name.endswith(".lora_B.weight"):
            rank = weight.shape[1]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            weights[name] = weight.float() * (layer_scaling(module, rank, config) * rank / alpha)
    save_file(weights, out)


def layer_scaling(module: str, rank: int, config: AdapterConfig) -> float:
    """What PEFT multiplies a layer's update by: alpha / r, or alpha / √r for rsLoRA."""
    from peft.utils.other import get_pattern_key

    patterns = config.alpha_pattern or {}
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return float(alpha) / (rank**0.5 if config.use_rslora else rank)


def public_card(folder: Path) -> dict[str, Any]:
    """What a GGUF file may repeat of a folder's model card."""
    found: dict[str, Any] = {}
    with suppress(OSError, ValueError, yaml.YAMLError):
        found = metadata_load(folder / "README.md") or {}
    tags = [tag for tag in found.get("tags") or [] if isinstance(tag, str) and ":" not in tag and "/" not in tag]
    return {key: found[key] for key in CARD_KEYS if key in found} | ({"tags": tags} if tags else {})


def write_public_card(folder: Path, values: dict[str, Any], base: str | None) -> None:
    """Write a README.md with only metadata. `base` is left out if it is a path."""
    if base and (public := public_name(base)):
        values = {**values, "base_model": public}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=True)
    (folder / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")
