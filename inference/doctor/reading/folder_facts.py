"""The facts of a folder of safetensors: a complete model, or an adapter as PEFT writes it.

Reads no pickle and runs no code of the folder. torch is imported when values are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from inference.doctor.facts import AdapterFacts, Encoder, Facts, MatrixPair, ModelFacts, Tensor, Vocabulary
from inference.doctor.reading.layer_names import BY_LAST_PART, gguf_name
from inference.engines.chat_template.template import ChatTemplate
from inference.errors import LabError
from inference.formats.adapter_config import FILE, AdapterConfig, read_adapter_config
from inference.validation import reason_of, shorten

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "mistral": "llama",
    "mixtral": "llama",
}  # GGUF's names where they are not config.json's


def folder_facts(folder: Path) -> Facts:
    """The facts of a folder. Raises LabError if files are missing or damaged."""
    weights = Weights(folder, ADAPTER_WEIGHTS if (folder / FILE).is_file() else "model*.safetensors")
    return adapter(folder, weights) if (folder / FILE).is_file() else model(folder, weights)


class Weights:
    """The tensors of safetensors files, by the names that GGUF gives to layers."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._files: dict[str, tuple[Path, str]] = {}
        self.tensors: dict[str, Tensor] = {}
        paths = sorted(folder.glob(pattern))
        if not paths:
            raise LabError(f"{folder.name} has no {pattern}: name a folder with safetensors, or a GGUF file.")
        for path in paths:
            try:
                with safe_open(path, "numpy") as file:
                    for name in list(file.keys()):
                        part = file.get_slice(name)
                        self._add(path, name, tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise LabError(
                    f"{path.name} of {folder.name} is truncated or damaged ({reason_of(error)}): download it again."
                ) from error

    def _add(self, path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
        own = gguf_name(name)
        self._files[own] = path, name
        self.tensors[own] = Tensor(shape, dtype, prod(shape) * BYTES.get(dtype, 1))

    def read(self, name: str, rows: int) -> np.ndarray:
        """See `ModelFacts.read`."""
        path, original = self._files[name]
        with safe_open(path, "pt") as file:
            found: np.ndarray = file.get_slice(original)[:rows].float().numpy()
        return found

    def finite(self, name: str) -> bool:
        """Whether all values of a tensor are finite."""
        return bool(np.isfinite(self.read(name, self.tensors[name].shape[0])).all())


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file. Raises LabError if it is not an object."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise LabError(f"{path.name} is not JSON ({reason_of(error)}): download it again.") from error
    if not isinstance(values, dict):
        raise LabError(f"{path.name} is not a JSON object: download it again.")
    return values


def model(folder: Path, weights: Weights) -> ModelFacts:
    """The facts of a complete model."""
    config = read_json(folder / "config.json")
    config = config | config.get("text_config", {})
    kind = str(config.get("model_type", "unknown"))
    rope = config.get("rope_parameters") or {
        **(config.get("rope_scaling") or {}),
        "rope_theta": config.get("rope_theta"),
    }
    rope = rope.get("full_attention", rope)
    tokenizer = FolderTokenizer(folder, config)
    return ModelFacts(
        path=folder,
        form="safetensors",
        architecture=ARCHITECTURES.get(kind, kind),
        name=folder.name,
        tensors=weights.tensors,
        layers=config.get("num_hidden_layers"),
        heads=config.get("num_attention_heads"),
        kv_heads=config.get("num_key_value_heads"),
        context=config.get("max_position_embeddings"),
        rope_base=rope.get("rope_theta"),
        rope_scaling=scaling(rope),
        vocabulary=tokenizer.vocabulary,
        template=tokenizer.template,
        encoder=tokenizer.encoder,
        read=weights.read,
        finite=weights.finite,
    )


def scaling(rope: Mapping[str, Any]) -> str:
    """The scaling of the rotary embedding in words."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("default", "llama3"):
        return "none" if kind == "default" else "llama3"
    return f"{kind} × {rope.get('factor', 1):g}"


class FolderTokenizer:
    """The tokenizer of a folder: `tokenizer.json`, and what the configuration files say about its special tokens."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        settings = read_json(folder / "tokenizer_config.json")
        self.template = chat_template(folder, settings)
        self.vocabulary: Vocabulary | None = None
        if not (folder / "tokenizer.json").is_file():
            return
        try:
            self._backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more special
            raise LabError(f"tokenizer.json can't be read ({reason_of(error)}): download it again.") from error
        self._backend.no_truncation()
        added = self._backend.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items() if token.special}
        self._names = {key: spelling_of(settings.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
        ids = {key: self._backend.token_to_id(name) if name else None for key, name in self._names.items()}
        generation = read_json(folder / "generation_config.json")
        declared = [generation.get("eos_token_id"), config.get("eos_token_id")]
        ends = [ids["eos"], *(end for each in declared for end in (each if isinstance(each, list) else [each]))]
        self.vocabulary = Vocabulary(
            spellings={number: text for text, number in self._backend.get_vocab().items()},
            special=frozenset(self._special.values()),
            bos=ids["bos"],
            pad=ids["pad"],
            eos=tuple(dict.fromkeys(end for end in ends if isinstance(end, int))),
            adds_bos=ids["bos"] is not None and self._backend.encode("a").ids[:1] == [ids["bos"]],
        )
        self._backend.encode_special_tokens = True  # the spelling of a special token in a text stays text

    def encoder(self) -> Encoder:
        """See `ModelFacts.encoder`."""
        if self.vocabulary is None or self.template is None:
            missing = "tokenizer.json" if self.vocabulary is None else "chat template"
            raise LabError(f"{self._folder.name} has no {missing}: add it.")
        names = self._names["bos"] or "", self._names["eos"] or ""
        return Encoder(
            ChatTemplate(self.template, self._special, self.tokenize, *names), self.vocabulary.eos.__contains__
        )

    def tokenize(self, text: str) -> list[int]:
        """The ids of plain text."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The source of a folder's chat template; None if it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    found = settings.get("chat_template")
    return found if isinstance(found, str) else None


def spelling_of(value: Any) -> str | None:
    """The spelling of a special token, which a file writes as text or as an object."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def adapter(folder: Path, weights: Weights) -> AdapterFacts:
    """The facts of PEFT's adapter. Raises LabError if it is not plain LoRA."""
    config = read_adapter_config(folder)
    names = {gguf_name(name.removesuffix(end)): name.removesuffix(end)
             for name in weights.tensors for end in (LORA_A, LORA_B) if name.endswith(end)}  # fmt: skip
    whole = [layer for layer, name in names.items() if {name + LORA_A, name + LORA_B} <= weights.tensors.keys()]
    tensors = weights.tensors
    pairs = {}
    for layer in whole:
        a, b = tensors[names[layer] + LORA_A].shape, tensors[names[layer] + LORA_B].shape
        pairs[layer] = MatrixPair(a, b, scale_of(config, a[0]))

    def read(layer: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (names[layer] + end for end in (LORA_A, LORA_B))
        return weights.read(a, tensors[a].shape[0]), weights.read(b, tensors[b].shape[0])

    targets = config.target_modules if isinstance(config.target_modules, list) else []
    last_parts = {name.rpartition(".")[2] for name in targets}
    return AdapterFacts(
        path=folder,
        form="safetensors",
        architecture="",
        name=folder.name,
        tensors=tensors,
        pairs=pairs,
        half_layers=sorted(names.keys() - set(whole)),
        other_tensors=[shorten(name) for name in tensors if not name.endswith((LORA_A, LORA_B))],
        bases=[config.base_model_name_or_path] if config.base_model_name_or_path else [],
        declared_kinds=sorted(kind for part, kind in BY_LAST_PART.items() if part in last_parts),
        read=read,
        finite=weights.finite,
    )


def scale_of(config: AdapterConfig, rank: int) -> float | None:
    """The scale of a layer of that rank; None if layers have alphas of their own, which the file cannot tell apart."""
    if config.alpha_pattern:
        return None
    return config.lora_alpha / (rank**0.5 if config.use_rslora else rank)
