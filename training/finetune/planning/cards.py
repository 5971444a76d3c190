"""Cards that a run can be planned for: five common GPUs, and this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec


@dataclass(frozen=True)
class Card:
    """A device to train on.

    Attributes:
        memory: what torch can use, in bytes.
        peak: dense 16-bit FLOP/s (data sheet).
        bfloat16: whether it computes bfloat16 fast.
        efficiency: the share of the peak that the arithmetic of a large batch reaches.
        launch: the seconds that a layer takes for a micro-batch, however small: with 16-bit LoRA, and with QLoRA, which
            also unpacks the weights.
        source: where `efficiency` and `launch` come from.
        liger: whether Liger's kernels are installed.
    """

    name: str
    memory: float
    peak: float
    bfloat16: bool = True
    efficiency: float = 0.45  # H200: of the GPU's own time for 8 packed rows of a 1B
    launch: tuple[float, float] = (0.0065, 0.009)  # H200: steps of a 1B and a 3B with 450 to 3,600 tokens
    source: str = "scaled from an H200 by its peak"
    gpu: bool = True
    liger: bool = True

    @property
    def dtype(self) -> str:
        """What a run computes in: bfloat16 if it is fast, else float16 on a GPU and float32 on a CPU."""
        return "bfloat16" if self.bfloat16 else "float16" if self.gpu else "float32"


# The T4's share of its peak lies between those of the study's two runs of a 1B: 23 h unpacked, 11 h packed.
CARDS = {
    card.name: card
    for card in (
        Card("T4", 15.6e9, 65e12, bfloat16=False, efficiency=0.085, source="from the study's two runs"),
        Card("L4", 23.6e9, 121e12),
        Card("A10G", 23.6e9, 70e12),
        Card("A100", 42.3e9, 312e12),
        Card("H100", 84.9e9, 989e12, source="as measured on an H200"),
    )
}
# FLOP/s. A CPU with matrix units (AMX) multiplies faster than that, and then other work limits a step: the nano took
# 100 GFLOP/s there. Without them the nano took 34 and a 270M 45 GFLOP/s on one core, 0.35 to 0.5 of its product.
CPU_LIMIT = 3e11
HERE = "here"  # what a user types for this machine


def find_card(name: str) -> Card:
    """A card by its name in any case, or this machine for `here` and its CPU for `cpu`. Raises LabError if there is no
    such card."""
    from inference.errors import LabError
    from inference.validation import nearest

    if name.lower() in (HERE, "cpu"):
        return this_machine(gpu=name.lower() == HERE)
    for known, card in CARDS.items():
        if known.lower() == name.lower():
            return card
    known_names = [*CARDS, "cpu", HERE]
    raise LabError(f"There is no card “{name}”{nearest(name, known_names)}: choose one of {', '.join(known_names)}.")


def this_machine(gpu: bool = True) -> Card:
    """This machine: its smallest GPU if it has one and `gpu` is true, else its CPU, whose peak is measured in half a
    second. Memory is that of the whole GPU, or what the CPU has left."""
    import torch

    if gpu and torch.cuda.is_available():
        return this_gpu()
    from training.finetune.progress import peak_flops

    bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    peak = min(peak_flops(), CPU_LIMIT)
    return Card(
        "this CPU", free_memory(), peak, bfloat16, 0.4, (0.01, 0.013), "from a matrix product here",
        gpu=False, liger=False,
    )  # fmt: skip


def free_memory() -> float:
    """Bytes of main memory that no program uses."""
    import psutil

    return psutil.virtual_memory().available


@cache
def this_gpu() -> Card:
    """The GPU with the least memory that this process sees."""
    import torch

    from training.finetune.progress import peak_flops

    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    smallest = min(found, key=lambda properties: properties.total_memory)
    bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    liger = find_spec("liger_kernel") is not None
    card = Card(f"this {smallest.name}", smallest.total_memory, peak_flops(), bfloat16, liger=liger)
    named = next((known for known in CARDS.values() if known.name in re.split(r"[ -]", smallest.name)), card)
    return replace(card, efficiency=named.efficiency, source=named.source)
