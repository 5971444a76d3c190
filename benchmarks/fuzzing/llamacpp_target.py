"""GGUF files, of a base and of an adapter, through llama.cpp in its own process."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from random import Random

from benchmarks.fuzzing.mutations import NUMBERS, TEXTS, mutate_bytes
from benchmarks.fuzzing.target import EMOJI, EXPECTED, NANO, QUESTION, Input
from inference.engines import Message, ModelFiles, Sampling
from inference.engines.isolation.engine import IsolatedEngine

BASE, ADAPTER = NANO / "nano-Q8_0.gguf", EMOJI / "adapter-f16.gguf"
KEY = re.compile(rb"(?:general|llama|tokenizer|adapter)\.[a-z_.]+")
SHARE_OF_KEYS = 0.5  # of the inputs change the type or the value of a key


class GgufFiles:
    """Mutated GGUF files: half of them bases, half adapters."""

    seconds = 20.0

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-gguf-")
        self._engine = IsolatedEngine("llamacpp", threads=1)
        self._original = {"base": BASE.read_bytes(), "adapter": ADAPTER.read_bytes()}
        self._number = 0

    def make(self, rng: Random) -> Input:
        """See `Target`."""
        variant = rng.choice(("base", "adapter"))
        data = self._original[variant]
        header = header_bytes(data)
        if rng.random() < SHARE_OF_KEYS:
            changed = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 4))):
                change_key(changed, header, rng)
            return Input(variant, bytes(changed))
        return Input(variant, mutate_bytes(data, rng, header))

    def run(self, given: Input) -> str:
        """See `Target`."""
        self._number += 1  # a new name, because the engine may still have the old file in memory
        path = Path(self._folder.name) / f"{given.variant}-{self._number}.gguf"
        path.write_bytes(given.content)
        try:
            return self._ask(ModelFiles(path) if given.variant == "base" else ModelFiles(BASE, path), 8)
        finally:
            path.unlink()

    def well_behaved(self) -> bool:
        """See `Target`."""
        return EXPECTED in self._ask(ModelFiles(BASE, ADAPTER), 32)

    def restart(self) -> None:
        """See `Target`."""
        self._engine.close()

    def close(self) -> None:
        """See `Target`."""
        self._engine.close()
        self._folder.cleanup()

    def _ask(self, files: ModelFiles, max_tokens: int) -> str:
        messages, sampling = [Message(role="user", content=QUESTION)], Sampling(0, max_tokens=max_tokens)
        return "".join(chunk.text for chunk in self._engine.stream(files, messages, sampling, lambda: False))


def header_bytes(data: bytes) -> int:
    """Where the names of the tensors end, about: the data of the tensors follow."""
    return data.rindex(b".weight") + 64


def change_key(changed: bytearray, header: int, rng: Random) -> None:
    """Change the name, the length of the name, the type or the value of a key of the metadata."""
    found = rng.choice(list(KEY.finditer(changed, 0, header)) or [None])
    if found is None:
        return
    start, end = found.span()
    number = rng.choice(NUMBERS)
    match rng.randrange(6):
        case 0:
            changed[start - 8 : start] = (number % 2**64).to_bytes(8, "little")
        case 1:
            changed[end : end + 4] = rng.choice((*range(14), 255)).to_bytes(4, "little")
        case 2 | 3:
            changed[end + 4 : end + 8] = (number % 2**32).to_bytes(4, "little")
        case 4:
            text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[: end - start]
            changed[start : start + len(text)] = text
        case _:
            changed[end + 4 : end + 12] = (number % 2**64).to_bytes(8, "little")
