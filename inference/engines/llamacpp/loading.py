"""Loading a GGUF file with llama.cpp: checks before, llama.cpp's error messages, and the memory that a base needs."""

from __future__ import annotations

import ctypes
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as cpp

from inference.errors import LabError
from inference.validation import REASON, shorten

WARNING_AND_ERROR = (3, 4)  # GGML_LOG_LEVEL_WARN and GGML_LOG_LEVEL_ERROR in ggml.h
KV_BYTES = 2  # of a number in the KV cache


class Log:
    """llama.cpp's warnings and errors. It logs the reason of a failure and does not return it. A process has one log:
    only the `Log` that was created or cleared last receives lines."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=20)
        self._callback = cpp.llama_log_callback(self._receive)
        # llama.cpp keeps a pointer to the callback until the process ends, so it is never freed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._callback))
        self.clear()

    def _receive(self, level: int, text: bytes, _: object) -> None:
        if level in WARNING_AND_ERROR:
            self.lines.append(text.decode("utf-8", "replace").strip())

    def clear(self) -> None:
        """Forget all lines and receive the next ones."""
        self.lines.clear()
        cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def reason(self) -> str:
        """The first line since `clear`, without the function names before it."""
        lines = [line for line in self.lines if line.strip(".")]
        return shorten(lines[0].rpartition(": ")[2].rstrip("."), REASON) if lines else "no reason given"


def has_amx() -> bool:
    """Whether the CPU has Intel's matrix tiles (AMX). llama.cpp crashes on some of these CPUs (its issue 20824). Its
    AMX code can only be turned off together with its other repacked weights."""
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def check_gguf(path: Path) -> None:
    """Raise LabError if a file is not readable or not a GGUF file."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LabError(f"{path.name} can't be read ({error.strerror}): download or export it again.") from error
    if magic != b"GGUF":
        raise LabError(f"{path.name} is not a GGUF file: download or export it again.")


def load_model(path: Path, log: Log, vocab_only: bool = False) -> cpp.llama_model_p:
    """Load a model; free it with `llama_model_free`. Raises LabError if llama.cpp cannot load the file."""
    check_gguf(path)
    log.clear()
    params = cpp.llama_model_default_params()
    params.use_extra_bufts = not has_amx()
    params.vocab_only = vocab_only
    model = cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise LabError(f"{path.name} can't be loaded ({log.reason()}): download or export it again.")
    return model


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes that a base takes: its `weights` (the file's size), and each `cell` of its KV cache."""

    weights: int
    cell: int

    def total(self, cells: int) -> int:
        """The bytes with that many cells."""
        return self.weights + cells * self.cell


def memory_needed(path: Path, log: Log) -> MemoryNeed:
    """The memory that a base takes, from its metadata."""
    model = load_model(path, log, vocab_only=True)
    buffer = ctypes.create_string_buffer(4096)

    def value(key: str) -> int:
        """The largest number of a key, because some models have one for each layer. 0 if the key is missing."""
        if cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer)) < 0:
            return 0
        return max(map(int, re.findall(rb"\d+", buffer.value)), default=0)

    try:
        cpp.llama_model_meta_val_str(model, b"general.architecture", buffer, len(buffer))
        architecture = buffer.value.decode("utf-8", "replace")
        heads = value(f"{architecture}.attention.head_count")
        width = value(f"{architecture}.embedding_length") // max(1, heads)
        keys, values = (value(f"{architecture}.attention.{name}_length") or width for name in ("key", "value"))
        heads = value(f"{architecture}.attention.head_count_kv") or heads
        cell = KV_BYTES * value(f"{architecture}.block_count") * heads * (keys + values)
    finally:
        cpp.llama_model_free(model)
    return MemoryNeed(path.stat().st_size, cell)
