"""The metadata at the start of a GGUF file: whether it is a model or an adapter, and what the adapter needs.

A file's name does not say that. Its metadata does: `general.type` first, then `adapter.*` or `tokenizer.*` keys, then
the names of the tensors. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The reader takes the
first bytes of a file, of a few kB in general, and stops as soon as it knows enough.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import Any, Literal

from pydantic import BaseModel, FiniteFloat

FIRST_BYTES = 64 * 2**10  # enough for nearly every file
MAX_BYTES = 2 * 2**20  # what is read at most
MAX_KEYS = 1_000
MAX_STRING = 100_000  # bytes of a text; chat templates come after the keys that are read here
MAX_STRINGS = 10_000  # of an array of texts
STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# The tag of an adapter whose matrices contain the scaling of their layers. `training/export` writes it.
SCALED_BY_LAYER = "scaled_by_layer"

Bytes = bytes | mmap.mmap
Value = str | int | float | bool | list[Any] | None


class GgufFacts(BaseModel):
    """What a GGUF file says about itself. `role`: "other" is for files that write no text, such as image encoders.
    `alpha`: of an adapter, see `AdapterConfig.alpha_for_gguf`. `starts_late`: an adapter that starts at certain tokens
    (aLoRA). `scaled_by_layer`: an adapter whose layers have alphas of their own, in its matrices. `bases`: the names of
    the models that it was made from."""

    role: Literal["model", "adapter", "other"]
    alpha: FiniteFloat | None = None
    starts_late: bool = False
    scaled_by_layer: bool = False
    bases: list[str] = []


class Incomplete(Exception):
    """More bytes of the file are needed."""


def read_gguf_facts(start: bytes) -> GgufFacts:
    """The facts in the first bytes of a file. Raises Incomplete if they are too few, ValueError if the file is not
    GGUF."""
    reader = Reader(start)
    if reader.bytes(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    if (version := reader.number("I")) not in (2, 3):
        raise ValueError(f"its version is {version}")
    tensors, keys = reader.number("Q"), reader.number("Q")
    if keys > MAX_KEYS:
        raise ValueError(f"it has {keys} keys")
    values: dict[str, Value] = {}
    for _ in range(keys):
        key = reader.string()
        if key.startswith("tokenizer."):
            # No adapter has a tokenizer, and its arrays are long.
            return GgufFacts(role="model" if values.get("general.type", "model") == "model" else "other")
        values[key] = reader.value(reader.number("I"))
        if key == "general.type" and values[key] != "adapter":
            return GgufFacts(role="model" if values[key] == "model" else "other")
    is_adapter = "general.type" in values or any(key.startswith("adapter.") for key in values)
    if not is_adapter and tensors:
        is_adapter = reader.string().endswith((".lora_a", ".lora_b"))
    return adapter_facts(values) if is_adapter else GgufFacts(role="model")


def adapter_facts(values: dict[str, Value]) -> GgufFacts:
    """The facts of an adapter from its metadata."""
    if values.get("adapter.type", "lora") != "lora":
        return GgufFacts(role="other")
    alpha, tags = values.get("adapter.lora.alpha"), values.get("general.tags")
    bases = [value for key, value in values.items() if key.startswith("general.base_model.") and "repo_url" in key]
    return GgufFacts(
        role="adapter",
        alpha=alpha if isinstance(alpha, float) and math.isfinite(alpha) else None,
        starts_late=any("alora" in key for key in values),
        scaled_by_layer=isinstance(tags, list) and SCALED_BY_LAYER in tags,
        bases=[str(base)[:300].split("huggingface.co/")[-1] for base in bases][:8],
    )


class Reader:
    """Reads values one after the other. Raises Incomplete at the end of the bytes."""

    longest_string = MAX_STRING

    def __init__(self, data: Bytes) -> None:
        self._data, self.position = data, 0

    def bytes(self, count: int) -> bytes:
        """The next bytes."""
        start = self.position
        self.skip(count)
        return self._data[start : self.position]

    def skip(self, count: int) -> None:
        """Leave out bytes."""
        self.position += count
        if self.position > len(self._data):
            raise Incomplete

    def number(self, kind: str) -> Any:
        """A number in a format of `struct`."""
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def string(self) -> str:
        """A text. Raises ValueError if it is too long."""
        length = self.number("Q")
        if length > self.longest_string:
            raise ValueError(f"a text in it has {length} bytes")
        return self.bytes(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        """A value of a type of GGUF; None for an array of anything but texts. Raises ValueError if there is no such
        type."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array()
        if kind not in FORMATS:
            raise ValueError(f"it has a value of the type {kind}")
        found: int | float | bool = self.number(FORMATS[kind])
        return found

    def array(self) -> Any:
        """An array: a list of texts, or None for other values."""
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING and count <= MAX_STRINGS:
            return [self.string() for _ in range(count)]
        if kind in FORMATS and count <= MAX_BYTES:
            self.skip(count * struct.calcsize(f"<{FORMATS[kind]}"))
        else:
            raise ValueError(f"it has an array of {count} values of the type {kind}")
        return None
