"""Quantization of a GGUF file by llama.cpp."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import llama_cpp.llama_cpp as cpp
import typer

from inference.engines.llamacpp.loading import Log
from inference.errors import LabError
from training.export.steps import atomic_file, timed_step

FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


class TemporaryLog(Log):
    """llama.cpp's warnings and errors inside a `with`. Afterwards the log that was there before receives them again."""

    def __init__(self) -> None:
        self._former, self._data = cpp.llama_log_callback(), ctypes.c_void_p()
        cpp.llama_log_get(ctypes.byref(self._former), ctypes.byref(self._data))
        super().__init__()

    def __enter__(self) -> TemporaryLog:
        return self

    def __exit__(self, *_: object) -> None:
        cpp.llama_log_set(self._former, self._data)

    def fallbacks(self) -> tuple[int, int]:
        """How many of how many tensors got another type than requested."""
        found = [match for line in self.lines if (match := FALLBACK.search(line))]
        return (int(found[-1][1]), int(found[-1][2])) if found else (0, 0)


def quantize(source: Path, out: Path, file_type: int) -> None:
    """Quantize a GGUF file. `file_type` is one of llama.cpp's LLAMA_FTYPE numbers.

    K-quants have blocks of 256 numbers. A tensor whose rows are no multiple of that gets a larger type, which is
    reported on the terminal. Raises LabError if the file cannot be written.
    """
    params = cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = len(os.sched_getaffinity(0))
    with atomic_file(out) as part, TemporaryLog() as log:
        with timed_step(f"quantizing {out.name}"):
            if cpp.llama_model_quantize(str(source).encode(), str(part).encode(), params):
                raise LabError(f"{source.name} cannot be quantized ({log.reason()}): make room on the disk.")
        fallbacks, tensors = log.fallbacks()
    if fallbacks:
        typer.echo(f"{fallbacks} of {tensors} tensors do not fit the type's blocks and have a larger type", err=True)
