"""What a model's or adapter's files say about themselves, in the same words for GGUF and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from inference.engines.chat_template.template import ChatTemplate

Form = Literal["gguf", "safetensors"]


@dataclass(frozen=True)
class Tensor:
    """A tensor's shape in PyTorch's order, the name of its type, its bytes, and whether the file has all of them."""

    shape: tuple[int, ...]
    type: str
    bytes: int
    is_complete: bool = True

    @property
    def values(self) -> int:
        """The number of its values."""
        return prod(self.shape)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        spellings: all tokens that have a spelling, by id.
        special: the ids of special tokens.
        bos, pad: None if there is none.
        eos: the tokens that the files name as the end of a text; the first one is the tokenizer's own.
        adds_bos: whether the tokenizer puts a BOS before each text.
    """

    spellings: Mapping[int, str]
    special: frozenset[int]
    bos: int | None
    pad: int | None
    eos: tuple[int, ...]
    adds_bos: bool

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self.spellings, default=-1) + 1

    def name(self, token: int | None) -> str:
        """A token for people: "<|eot_id|> (3070)"."""
        if token is None:
            return "none"
        return f"{self.spellings[token]} ({token})" if token in self.spellings else str(token)


@dataclass(frozen=True)
class Encoder:
    """Renders and tokenizes conversations as the engine of this form does. `is_end`: whether a token ends an answer."""

    template: ChatTemplate
    is_end: Callable[[int], bool]


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What a model and an adapter have in common.

    Attributes:
        path: the GGUF file or the folder.
        architecture: of the model, or of the adapter's base; "" if an adapter does not say.
        name: what the files call the model or adapter.
        tensors: by name. Those of a model have GGUF's names ("blk.0.attn_q.weight") in both forms.
        finite: whether all values of the tensor of that name are finite.
    """

    path: Path
    form: Form
    architecture: str
    name: str
    tensors: Mapping[str, Tensor]
    finite: Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class ModelFacts(FileFacts):
    """A complete model. Numbers that the files lack are None.

    Attributes:
        context: the longest conversation in tokens.
        rope_base: the base of the rotary embedding's frequencies; `rope_scaling` in words, "none" without.
        template: the source of the chat template.
        encoder: opens the tokenizer; raises LabError if there is none.
        read: a tensor's first rows as float32 (at most that many), with the rows in the file's order. None for a type
            without weights.
    """

    layers: int | None
    heads: int | None
    kv_heads: int | None
    context: int | None
    rope_base: float | None
    rope_scaling: str
    vocabulary: Vocabulary | None
    template: str | None
    encoder: Callable[[], Encoder]
    read: Callable[[str, int], np.ndarray | None]

    @property
    def embedding_rows(self) -> int | None:
        """The rows of the embeddings, of which those above the vocabulary's size are padding."""
        found = self.tensors.get("token_embd.weight")
        return found.shape[0] if found else None

    @property
    def tied(self) -> bool:
        """Whether the output layer is the embeddings."""
        return "output.weight" not in self.tensors


@dataclass(frozen=True)
class MatrixPair:
    """The update of a layer: the shapes of A (r, in) and B (out, r), and the scale of B·A; None if it is not known."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    scale: float | None


@dataclass(frozen=True, kw_only=True)
class AdapterFacts(FileFacts):
    """A LoRA adapter.

    Attributes:
        pairs: by layer, with GGUF's names ("blk.0.attn_q").
        half_layers: layers with only one of their two matrices.
        other_tensors: names of tensors that are not LoRA of a known layer.
        bases: the names of its base, if it has any.
        declared_kinds: the kinds of layers that its configuration names ("attn_q"); empty if it has none.
        read: A and B of a layer as float32, with the rows in the file's order.
    """

    pairs: Mapping[str, MatrixPair]
    half_layers: Sequence[str]
    other_tensors: Sequence[str]
    bases: Sequence[str]
    declared_kinds: Sequence[str]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]]


Facts = ModelFacts | AdapterFacts
