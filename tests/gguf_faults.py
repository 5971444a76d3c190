"""Write GGUF files with faults that are known: copies of the nano's files with other metadata or other tensors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.doctor import ggml
from inference.formats.gguf_file import read_gguf_file

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
Change = Callable[[str, np.ndarray], np.ndarray | None]


def write_faulty(
    source: Path, out: Path, metadata: Mapping[str, Any] | None = None, change: Change = lambda name, rows: rows
) -> Path:
    """Copy a GGUF file. `metadata` replaces values. `change` gets each tensor's rows as bytes, uint8 (rows, bytes), and
    returns other ones, or None to leave the tensor out."""
    file = read_gguf_file(source)
    data = np.fromfile(source, np.uint8)
    tensors = []
    for tensor in file.tensors.values():
        width, rows = tensor.shape[-1], int(np.prod(tensor.shape[:-1]))
        size = ggml.row_bytes(tensor.type, width)
        found = change(tensor.name, data[tensor.start : tensor.start + rows * size].reshape(rows, size))
        if found is not None:
            tensors.append((tensor, found.tobytes()))
    values = {**file.metadata, **(metadata or {})}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))
    header += b"".join(text(key) + value(each) for key, each in values.items())
    start, body = 0, b""
    for tensor, content in tensors:
        header += text(tensor.name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header += struct.pack("<IQ", tensor.type, start)
        body += content + bytes(-len(content) % ALIGNMENT)
        start = len(body)
    out.write_bytes(header + bytes(-len(header) % ALIGNMENT) + body)
    return out


def text(value: str) -> bytes:
    """A string as GGUF writes it."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(each: Any) -> bytes:
    """A value with its type."""
    kind = kind_of(each)
    if kind == ARRAY:
        item = I32 if isinstance(each[0], int) else kind_of(each[0])  # llama.cpp takes no other integers in arrays
        return struct.pack("<IIQ", ARRAY, item, len(each)) + b"".join(content(item, one) for one in each)
    return struct.pack("<I", kind) + content(kind, each)


def kind_of(each: Any) -> int:
    """GGUF's number of a value's type."""
    kinds = {bool: BOOL, str: STRING, float: F32, list: ARRAY}
    return kinds.get(type(each), U32)


def content(kind: int, each: Any) -> bytes:
    """A value without its type."""
    return text(each) if kind == STRING else struct.pack({U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], each)
