"""A complete GGUF file: all of its metadata, and where each tensor is. `gguf_header` reads only the start.

The reader of the package `gguf` takes 15 s for a vocabulary of 262,144 tokens; this one takes a second. It bounds
sizes, but anyone can have written the file: read it in a confined process (`inference/processes/`).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.errors import LabError
from inference.formats.gguf_header import FORMATS, MAX_KEYS, STRING, Incomplete, Reader
from inference.validation import shorten

MAX_ITEMS = 5_000_000  # of an array; the largest vocabularies have 300,000 tokens
MAX_TENSORS = 100_000
ALIGNMENT = 32  # bytes, if the metadata has no other


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: its shape as PyTorch writes it (the reverse of GGUF's order), ggml's number of its type, and its first
    byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class GgufFile:
    """The metadata by key, the tensors by name in the file's order, and the size of the file in bytes."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    size: int

    def architecture_value(self, key: str) -> Any:
        """The value of `ARCHITECTURE.key`; None if there is none."""
        return self.metadata.get(f"{self.metadata.get('general.architecture')}.{key}")


class FileReader(Reader):
    """Reads longer texts and the values of all arrays."""

    longest_string = 10_000_000

    def array(self) -> list[Any]:
        """An array as a list. Raises ValueError if it is too long or has arrays in it."""
        kind, count = self.number("I"), self.number("Q")
        if count > MAX_ITEMS or (kind != STRING and kind not in FORMATS):
            raise ValueError(f"it has an array of {count} values of the type {kind}")
        if kind == STRING:
            return [self.string() for _ in range(count)]
        numbers = np.dtype(FORMATS[kind]).newbyteorder("<")
        return list(np.frombuffer(self.bytes(count * numbers.itemsize), numbers).tolist())


def read_gguf_file(path: Path) -> GgufFile:
    """Read a file. Raises LabError if it is not GGUF, or if it ends before its tensors begin."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(path, FileReader(data), len(data))
    except Incomplete as error:
        raise LabError(f"{path.name} is truncated: it ends inside of its metadata. Download it again.") from error
    except ValueError as error:
        reason = "it is empty" if path.stat().st_size == 0 else shorten(str(error))
        raise LabError(f"{path.name} is not a GGUF file ({reason}): download or export it again.") from error
    except OSError as error:
        raise LabError(f"{path.name} can't be read ({error.strerror}): check the path.") from error


def parse(path: Path, reader: FileReader, size: int) -> GgufFile:
    """The content of a file of `size` bytes. Raises Incomplete and ValueError."""
    if reader.bytes(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    if (version := reader.number("I")) not in (2, 3):
        raise ValueError(f"its version is {version}")
    count, keys = reader.number("Q"), reader.number("Q")
    if keys > MAX_KEYS or count > MAX_TENSORS:
        raise ValueError(f"it has {keys} keys and {count} tensors")
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    tensors = [read_tensor(reader) for _ in range(count)]
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError("its alignment is not a number")
    data = -(-reader.position // alignment) * alignment
    placed = {each.name: GgufTensor(each.name, each.shape, each.type, data + each.start) for each in tensors}
    return GgufFile(path, metadata, placed, size)


def read_tensor(reader: FileReader) -> GgufTensor:
    """The description of a tensor; its start is relative to the first tensor's."""
    name, dimensions = reader.string(), reader.number("I")
    if dimensions > 4:
        raise ValueError(f"a tensor has {dimensions} dimensions")
    shape = [reader.number("Q") for _ in range(dimensions)]
    return GgufTensor(name, tuple(reversed(shape)), reader.number("I"), reader.number("Q"))
