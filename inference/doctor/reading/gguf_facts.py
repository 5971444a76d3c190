"""The facts of a GGUF file: a complete model or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as cpp
import numpy as np

from inference.doctor import ggml
from inference.doctor.facts import AdapterFacts, Encoder, Facts, MatrixPair, ModelFacts, Tensor, Vocabulary
from inference.engines.llamacpp.loading import Log, load_model
from inference.engines.llamacpp.tokenizer import Tokenizer
from inference.errors import LabError
from inference.formats.gguf_file import GgufFile, GgufTensor, read_gguf_file
from inference.formats.gguf_header import adapter_facts

SPECIAL = (3, 4)  # LLAMA_TOKEN_TYPE_CONTROL and _USER_DEFINED in llama.h
ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3")  # tokenizers with a BOS, see llama-vocab.cpp
LORA_A, LORA_B = ".weight.lora_a", ".weight.lora_b"


def gguf_facts(path: Path) -> Facts:
    """The facts of a file. Raises LabError if it is not GGUF, ends inside of its metadata, or writes no text."""
    file = read_gguf_file(path)
    if (parts := whole(file.metadata.get("split.count"))) and parts > 1:
        raise LabError(f"{path.name} is one of {parts} parts: join them with llama.cpp's llama-gguf-split --merge.")
    kind = file.metadata.get("general.type", "adapter" if "adapter.type" in file.metadata else "model")
    if kind not in ("model", "adapter"):
        raise LabError(f"{path.name} is a GGUF file of the type {str(kind)[:40]}: name one that writes text.")
    values = Values(file)
    tensors = {name: values.tensor(each) for name, each in file.tensors.items()}
    return model(file, values, tensors) if kind == "model" else adapter(file, values, tensors)


class Values:
    """The values of a file's tensors."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._data = np.memmap(file.path, np.uint8, "r")

    def tensor(self, tensor: GgufTensor) -> Tensor:
        """The description of a tensor."""
        width, rows = (tensor.shape[-1], int(np.prod(tensor.shape[:-1], dtype=object))) if tensor.shape else (1, 1)
        size = rows * ggml.row_bytes(tensor.type, width)
        return Tensor(tensor.shape, ggml.type_name(tensor.type), size, tensor.start + size <= self._file.size)

    def _rows(self, name: str, rows: int) -> tuple[GgufTensor, np.ndarray]:
        """The bytes of the first rows of a tensor. Raises ValueError if they are not all in the file."""
        tensor = self._file.tensors[name]
        size = ggml.row_bytes(tensor.type, tensor.shape[-1]) * rows
        data = self._data[tensor.start : tensor.start + size]
        if not size or len(data) < size:
            raise ValueError(f"{name} is not complete")
        return tensor, np.ascontiguousarray(data)

    def read(self, name: str, rows: int) -> np.ndarray | None:
        """See `ModelFacts.read`."""
        shape = self._file.tensors[name].shape
        rows = min(rows, int(np.prod(shape[:-1], dtype=object)))
        tensor, data = self._rows(name, rows)
        found = ggml.to_float(tensor.type, data, rows * shape[-1])
        return None if found is None else found.reshape(rows, shape[-1])

    def finite(self, name: str) -> bool:
        """Whether all values of a tensor are finite."""
        shape = self._file.tensors[name].shape
        tensor, data = self._rows(name, int(np.prod(shape[:-1], dtype=object)))
        return ggml.is_finite(tensor.type, data)


def model(file: GgufFile, values: Values, tensors: Mapping[str, Tensor]) -> ModelFacts:
    """The facts of a complete model."""
    template = file.metadata.get("tokenizer.chat_template")
    return ModelFacts(
        path=file.path,
        form="gguf",
        architecture=str(file.metadata.get("general.architecture", "unknown")),
        name=str(file.metadata.get("general.name", "")),
        tensors=tensors,
        layers=whole(file.architecture_value("block_count")),
        heads=whole(file.architecture_value("attention.head_count")),
        kv_heads=whole(file.architecture_value("attention.head_count_kv")),
        context=whole(file.architecture_value("context_length")),
        rope_base=base if isinstance(base := file.architecture_value("rope.freq_base"), float) else None,
        rope_scaling=scaling(file),
        vocabulary=vocabulary(file.metadata),
        template=template if isinstance(template, str) else None,
        encoder=lambda: encoder(file.path),
        read=values.read,
        finite=values.finite,
    )


def whole(value: Any) -> int | None:
    """A whole number of the metadata; None for other values, such as a list with a number for each layer."""
    return value if isinstance(value, int) else None


def scaling(file: GgufFile) -> str:
    """The scaling of the rotary embedding in words. Llama 3's is a tensor of factors."""
    kind = file.architecture_value("rope.scaling.type")
    if "rope_freqs.weight" in file.tensors:
        return "llama3"
    factor = file.architecture_value("rope.scaling.factor")
    return f"{kind} × {factor:g}" if kind and kind != "none" and isinstance(factor, float) else "none"


def vocabulary(metadata: Mapping[str, Any]) -> Vocabulary | None:
    """The tokens of a model; None if the file has none."""
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type") or []
    if not isinstance(tokens, list):
        return None
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding", "eos", "eot")}
    return Vocabulary(
        spellings=dict(enumerate(tokens)),
        special=frozenset(i for i, kind in enumerate(types) if kind in SPECIAL),
        bos=whole(ids["bos"]),
        pad=whole(ids["padding"]),
        eos=tuple(token for name in ("eos", "eot") if isinstance(token := ids[name], int)),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos_by_default(metadata))),
    )


def adds_bos_by_default(metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp adds a BOS if the file does not say."""
    return metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in ADDS_BOS


def encoder(path: Path) -> Encoder:
    """The tokenizer of a file, by llama.cpp. It stays in memory until the process ends."""
    cpp.llama_backend_init()
    tokenizer = Tokenizer(load_model(path, Log(), vocab_only=True), path)
    return Encoder(tokenizer.template, tokenizer.is_end)


def adapter(file: GgufFile, values: Values, tensors: Mapping[str, Tensor]) -> AdapterFacts:
    """The facts of an adapter."""
    known = adapter_facts(dict(file.metadata))
    layers = {name.removesuffix(end) for name in tensors for end in (LORA_A, LORA_B) if name.endswith(end)}
    whole = sorted(layer for layer in layers if layer + LORA_A in tensors and layer + LORA_B in tensors)
    pairs = {}
    for layer in whole:
        a, b = tensors[layer + LORA_A].shape, tensors[layer + LORA_B].shape
        # Without an alpha, or with 0, llama.cpp does not scale.
        pairs[layer] = MatrixPair(a, b, known.alpha / a[0] if known.alpha else 1.0)

    def read(layer: str) -> tuple[np.ndarray, np.ndarray]:
        a, b = (values.read(layer + end, tensors[layer + end].shape[0]) for end in (LORA_A, LORA_B))
        if a is None or b is None:
            raise ValueError(f"{layer} has no weights")
        return a, b

    return AdapterFacts(
        path=file.path,
        form="gguf",
        architecture=str(file.metadata.get("general.architecture", "")),
        name=str(file.metadata.get("general.name", "")),
        tensors=tensors,
        pairs=pairs,
        half_layers=sorted(layers - set(whole)),
        other_tensors=[name for name in tensors if not name.endswith((LORA_A, LORA_B))],
        bases=known.bases,
        declared_kinds=(),
        read=read,
        finite=values.finite,
    )
