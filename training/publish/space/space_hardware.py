"""What a Space's hardware asks of its files: the Python and torch versions, Liger's kernels, and engines that work.

Sources, read in November 2026: https://huggingface.co/docs/hub/spaces-zerogpu for ZeroGPU's versions and memory, and
https://huggingface.co/docs/hub/spaces-gpus for the other hardware.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub import SpaceHardware

from inference.errors import LabError
from inference.hub.artifacts import NF4_FACTOR, Form
from inference.settings import PROJECT, PYTHON, dotted
from inference.validation import nearest

ZERO = SpaceHardware.ZERO_A10G.value  # the Hub's name for ZeroGPU, whatever its GPUs are
ZERO_PYTHON = "3.12.12"  # ZeroGPU has this one and 3.10.13, which is too old for transformers
ZERO_TORCH = "torch==2.11.0"  # the newest that ZeroGPU has
GIGABYTES = {  # memory of the machine, or of one GPU, by the start of the hardware's name
    "cpu-basic": 16, "cpu-upgrade": 32, ZERO: 48, "t4": 16, "l4x": 24, "l40s": 48, "a10g": 24, "a100": 80,
    "rtx-pro-6000": 96,
}  # fmt: skip
USABLE = 0.8  # of the memory, for weights
FLOAT32 = 2.0  # a CPU without bfloat16 holds 16-bit weights in twice their size


@dataclass(frozen=True)
class Machine:
    """A Space's hardware by the Hub's name."""

    name: str

    @property
    def zero(self) -> bool:
        """Whether it is ZeroGPU, which lends its GPU to single calls."""
        return self.name == ZERO

    @property
    def gpu(self) -> bool:
        """Whether it has a GPU."""
        return not self.name.startswith("cpu-")

    @property
    def memory(self) -> float | None:
        """Bytes of memory for models; None if the hardware is newer than this list."""
        found = (size for start, size in GIGABYTES.items() if self.name.startswith(start))
        return next((size * 1e9 for size in found), None)

    @property
    def python(self) -> str:
        """The Python version of the Space."""
        return ZERO_PYTHON if self.zero else dotted(PYTHON)

    def packages(self) -> list[str]:
        """The Space's packages, one a line: the project's own, with the torch and the kernels of this hardware."""
        lines = package_lines("requirements.txt")
        if self.zero:
            return [ZERO_TORCH if line.startswith("torch==") else line for line in lines]
        return lines + (package_lines("requirements-gpu.txt") if self.gpu else [])

    def check_engine(self, engine: str) -> None:
        """Raise LabError if the value of ENGINE cannot work here."""
        if self.zero and engine not in ("auto", "pytorch"):
            raise LabError(
                f"ENGINE={engine} cannot work on {ZERO}, which lends its GPU to PyTorch alone: leave ENGINE out, or "
                f"choose --hardware {SpaceHardware.CPU_BASIC.value}."
            )

    def check_size(self, model: str, size: int, form: Form) -> None:
        """Raise LabError if the files of a model, `size` bytes, need more memory than there is. PyTorch loads a base in
        4 bits on a GPU if it must, and in 32 bits on a CPU."""
        factor = 1.0 if form == "gguf" else NF4_FACTOR if self.gpu else FLOAT32
        memory = self.memory
        if memory is not None and factor * size > USABLE * memory:
            other = "" if form == "gguf" or self.gpu else ", ENGINE=llamacpp"
            raise LabError(
                f"{model} needs {factor * size / 1e9:.1f} GB of memory, but {self.name} has {memory / 1e9:.0f} GB: "
                f"choose a smaller model{other} or other --hardware."
            )


def find_machine(name: str) -> Machine:
    """The hardware of that name. Raises LabError if the Hub does not offer it."""
    known = [flavor.value for flavor in SpaceHardware]
    if name not in known:
        raise LabError(f"There is no hardware “{name}”{nearest(name, known)}: choose one of {', '.join(known)}.")
    return Machine(name)


def package_lines(file: str) -> list[str]:
    """The pinned packages of a requirements file, one a line, without its comments."""
    lines = (PROJECT / file).read_text(encoding="utf-8").splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if "==" in line]
