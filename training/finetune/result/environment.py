"""What decides the last bits of a run beside its recipe and data: the machine, the code, and the base's weights."""

from __future__ import annotations

import ast
import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import TypedDict

import torch

from inference.engines import ModelFiles
from inference.settings import PROJECT
from training.export.model_folder import Base
from training.recipe import Recipe

# What turns a recipe into weights: rows, tokens, steps.
SOURCES = ("training/data", "training/finetune", "training/recipe.py", "inference/engines/chat_template")


class Environment(TypedDict):
    """A run's environment.

    Attributes:
        python: the version of Python.
        processor: the name of the CPU.
        instructions: the widest vector instructions that torch uses on it, such as AVX512.
        threads: that torch computes with. More of them add in another order.
        code: 64 bits of a hash of the lab's training code, without its comments.
        base: 64 bits of a hash of the base's weights and configuration.
    """

    python: str
    processor: str
    instructions: str
    threads: int
    code: str
    base: str


def environment(recipe: Recipe) -> Environment:
    """The environment of a run of this recipe here. Raises LabError if the base is not available."""
    from training.evaluation.resolve_model import weights_revision

    return {
        "python": platform.python_version(),
        "processor": processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "code": code_revision(),
        "base": weights_revision(ModelFiles(Base(recipe.base).folder())),
    }


def processor_name() -> str:
    """The CPU's name as its maker gives it; on systems that do not tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


@cache
def code_revision() -> str:
    """64 bits of a hash of the code in SOURCES as Python reads it, so that comments and line breaks do not count."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = PROJECT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            text = ast.unparse(ast.parse(file.read_text(encoding="utf-8")))
            digest.update(f"{file.relative_to(PROJECT).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()[:16]
