"""What an export can carry, checked before training starts: the adapter's kind, the base's architecture and tokenizer.

A merged model is right for every adapter that PEFT merges. llama.cpp applies only plain LoRA on linear layers (with
rsLoRA, and with ranks and alphas of single layers), so the GGUF file of another adapter is left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from inference.errors import LabError
from inference.formats.adapter_config import REFUSED, is_set, parse_adapter_config
from inference.settings import cache_folder
from inference.validation import nearest
from training.export.llamacpp.convert import converter_folder, run_converter
from training.export.model_folder import CONFIGURATION, Base

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# PEFT merges these into the base, and no adapter file of llama.cpp holds them.
MERGED_ONLY = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "ensure_weight_tying")
EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_out")
ARCHITECTURES = "TEXT_MODEL_MAP"  # the table of llama.cpp's converter: a class of transformers, and its module


def check_exportable(peft_options: Mapping[str, Any], config: PretrainedConfig | None = None, base: str = "") -> None:
    """Raise LabError, one sentence, if a run could be trained but not exported.

    Args:
        peft_options: options of PEFT's `LoraConfig`; the ones that are not set may be missing.
        config, base: the base's configuration and its name; without them only the options are checked.
    """
    check_adapter_options(peft_options)
    if config is not None:
        check_base(base, config)


def check_adapter_options(options: Mapping[str, Any]) -> None:
    """Raise LabError if an adapter with these options of `LoraConfig` can be neither applied nor merged."""
    values = {key: list(value) if isinstance(value, set) else value for key, value in options.items()}
    if values.get("lora_bias"):
        raise LabError("“peft.lora_bias” can't be exported (a merged model has no such bias): leave it out.")
    plain = {key: value for key, value in values.items() if key not in (*MERGED_ONLY, "bias")}
    try:
        parse_adapter_config(json.dumps({"peft_type": "LORA", **plain}, default=str), "this recipe")
    except LabError as error:
        reason = str(error).removeprefix("The adapter this recipe ").removeprefix("The adapter_config.json of ")
        reason = reason.split(": train it as")[0].rstrip(".")
        raise LabError(f"The recipe's “peft” options can't be exported ({reason}): leave that option out.") from error


def adapter_file_obstacle(folder: Path) -> str:
    """Why llama.cpp cannot apply the adapter in a folder, as a clause; "" if it can."""
    from safetensors import safe_open

    values = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    for name in MERGED_ONLY:
        if is_set(values.get(name)):
            return f"llama.cpp applies no adapter with “{name}” ({REFUSED[name]})"
    if values.get("bias", "none") != "none":
        return "llama.cpp applies no adapter with trained biases"
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        names = weights.keys()
    if any("lora_embedding" in name or name.split(".")[-3] in EMBEDDINGS for name in names):
        return "llama.cpp applies no adapter on the embeddings or the output layer"
    return ""


def check_base(base: str, config: PretrainedConfig) -> None:
    """Raise LabError if llama.cpp's converter does not know the base's architecture, or cannot convert its tokenizer.
    Says on the terminal if the converter is not available, which is no reason not to train."""
    try:
        known = architectures(converter_folder())
    except LabError as error:
        typer.echo(f"It is not checked whether {base} can be exported. {error}", err=True)
        return
    named = list(getattr(config, "architectures", None) or [])
    if named and not set(named) & known:
        near = nearest(named[0], known)
        raise LabError(
            f"The base {base} can't be exported: llama.cpp's converter does not know its architecture "
            f"{named[0]}{near}; choose another base."
        )
    check_tokenizer(base)


@cache
def architectures(converters: Path) -> frozenset[str]:
    """The architectures that the converter knows, named as in a config.json. They are read from its source, because
    importing it takes seconds."""
    source = (converters / "conversion" / "__init__.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == ARCHITECTURES:
            assert node.value is not None
            return frozenset(ast.literal_eval(node.value))
    raise LabError("llama.cpp's converter has no list of architectures: install the pinned llama-cpp-python.")


def check_tokenizer(base: str) -> None:
    """Raise LabError if the base's tokenizer cannot be converted. A tokenizer that could be is remembered by its
    content."""
    folder = Base(base).folder(weights=False)
    files = sorted(path for pattern in CONFIGURATION for path in folder.glob(pattern) if ".index." not in path.name)
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    done = cache_folder() / f"convertible-{version('llama-cpp-python')}" / digest.hexdigest()[:16]
    if done.exists():
        return
    with tempfile.TemporaryDirectory(prefix="vocabulary-") as temporary:
        staged = Path(temporary) / "model"
        staged.mkdir()
        for path in files:
            (staged / path.name).symlink_to(path.resolve())
        out = Path(temporary) / "vocabulary.gguf"
        try:
            run_converter("convert_hf_to_gguf.py", str(staged), "--vocab-only", "--outfile", str(out))
        except LabError as error:
            reason = str(error).partition("failed (")[2].rpartition("):")[0] or str(error)
            raise LabError(
                f"The base {base} can't be exported: llama.cpp's converter can't convert its tokenizer ({reason}); "
                "choose another base."
            ) from error
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
