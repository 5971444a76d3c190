"""What the benchmarks share: figures, the table, the description of the machine, and a process of its own for each."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ParamSpec, TypeVar

from training.markdown import table

P = ParamSpec("P")
R = TypeVar("R")

PACKAGES = ("torch", "transformers", "trl", "llama-cpp-python", "openai-whisper", "gradio")
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")  # those that change the speed most


class Unavailable(Exception):
    """A benchmark that this machine can't run. The message is a sentence with the reason."""


@dataclass(frozen=True)
class Figure:
    """One row of the table: what was measured with its unit, the value, and what is expected of it, if anything."""

    what: str
    value: str
    expected: str = ""


@dataclass
class Stopwatch:
    """Seconds that a block took; 0 until it ends."""

    seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Measure the wall-clock time of a block."""
    watch, started = Stopwatch(), time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - started


def run_in_own_process(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a new Python process, so that its memory and its imports are its own. Its standard output
    goes to standard error. Returns what the function returns and raises what it raises."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=os.dup2, initargs=(2, 1)
    ) as pool:
        return pool.submit(function, *args, **kwargs).result()


def has_gpu() -> bool:
    """Whether torch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def measure(name: str, quick: bool) -> list[Figure]:
    """The figures of the benchmark of that name, measured in this process."""
    figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").measure(quick)
    return figures


def figure_table(figures: Iterable[Figure]) -> str:
    """Figures as a Markdown table."""
    return table(["what", "measured", "expected"], [[each.what, each.value, each.expected] for each in figures])


def describe_machine() -> str:
    """The processor, its cores and the features that matter, the GPU if there is one, and Python."""
    parts = [f"{cpu_model()}, {os.cpu_count()} cores"]
    if features := cpu_features():
        parts.append(f"features {', '.join(features)}")
    parts += [f"GPU {value_of('Model', file)}" for file in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    return "; ".join([*parts, f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"])


def value_of(key: str, file: Path = Path("/proc/cpuinfo")) -> str:
    """The first value of `key` in a file of "key: value" lines, or "" if there is no such file or no such key."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def cpu_model() -> str:
    """The processor's name."""
    return value_of("model name") or platform.processor() or "unknown processor"


def cpu_features() -> list[str]:
    """The features in CPU_FEATURES that the processor has."""
    found = set((value_of("flags") or value_of("Features")).split())
    return [feature for feature in CPU_FEATURES if feature in found]


def package_versions() -> str:
    """The versions of the packages that the figures depend on."""

    def describe(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"{package} not installed"

    return ", ".join(describe(package) for package in PACKAGES)
