"""What an engine is: one way to run a model, behind one small protocol. The page and the terminal know only this.

An engine takes chat messages and yields `Chunk`s as text appears. It knows nothing of the catalog or the Hub: it is
handed files that lie on this disk, or the name under which a server serves a model.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, TypedDict

from inference.errors import LabError
from inference.settings import zero_gpu
from inference.validation import nearest


@dataclass(frozen=True)
class Kind:
    """What is known of an engine before its runtime is imported: how the page names it, and what of a model it takes: a
    GGUF file, a folder as transformers and PEFT write it, or the name under which a server serves it. One that a broken
    file can end the process of runs `isolated`, in a process of its own."""

    module: str
    label: str
    takes: Literal["gguf", "safetensors", "served"]
    isolated: bool = False


ENGINES = {
    "llamacpp": Kind("inference.engines.llamacpp.engine", "CPU, llama.cpp", "gguf", isolated=True),
    "pytorch": Kind("inference.engines.pytorch.engine", "PyTorch", "safetensors"),
    "remote": Kind("inference.engines.remote", "remote server", "served"),
}


class Message(TypedDict):
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 always takes the likeliest; `seed` None draws a new one."""

    temperature: float = 0.2
    top_p: float = 0.9
    max_tokens: int = 256
    seed: int | None = None


@dataclass(frozen=True)
class ModelFiles:
    """The files that make up one model: a base, and the LoRA adapter on it, if it is one. Folders, for an engine that
    takes those."""

    base: Path
    adapter: Path | None = None


Model = ModelFiles | str  # files on this disk, or a served name


@dataclass(frozen=True)
class Figures:
    """What one answer cost. Rates are tokens per second after the first token, None where there are too few."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds_to_first_token: float | None
    tokens_per_second: float | None
    finish_reason: Literal["stop", "length", "cancelled"]
    dropped_turns: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: new text; or what is being waited for ("loading"); the last one carries the figures."""

    text: str = ""
    waiting: str | None = None
    figures: Figures | None = None


@dataclass(frozen=True)
class Scored:
    """How likely a model finds an answer: the sum over its tokens, the end-of-turn token that the chat template closes
    it with among them, of each one's log-probability (nats) after all before it; how many tokens these are; and whether
    each of them is the likeliest, so that a greedy answer would be this one."""

    log_likelihood: float
    tokens: int
    greedy: bool


class Engine(Protocol):
    """One way to run a model. It is the class `Engine` of a module of this package."""

    @classmethod
    def from_environment(cls) -> Engine:
        """The engine as the environment's settings describe it. Raises LabError where they don't."""

    def stream(
        self, model: Model, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """Answer the last message. Whole characters only; ends within one token of `cancelled()`; the last chunk has
        figures. Raises LabError for files that can't be run and questions that don't fit."""

    def score(self, model: Model, messages: Sequence[Message], answer: str) -> Scored:
        """How likely `answer` is as the assistant's next message, written as the chat template writes it: what held-out
        loss and comparisons of answers need. No turn is dropped: raises LabError for what doesn't fit, for files that
        can't be run and where an engine can't score."""

    def in_memory(self, model: Model) -> bool:
        """Whether answering would load nothing."""

    def close(self) -> None:
        """Free the memory."""


def choose(setting: str) -> str:
    """The engine that ENGINE asks for. "auto" takes a remote one where REMOTE_URL is set, PyTorch where an NVIDIA GPU
    is there or is lent and what PyTorch needs is installed, else llama.cpp. Nothing heavy is imported to find out."""
    if setting in ENGINES:
        return setting
    if setting != "auto":
        near = nearest(setting, ENGINES)
        raise LabError(f"There is no engine “{setting}”{near}: set ENGINE to auto or one of {', '.join(ENGINES)}.")
    if os.environ.get("REMOTE_URL"):
        return "remote"
    gpu = zero_gpu() or Path("/dev/nvidiactl").exists()
    return "pytorch" if gpu and all(find_spec(name) for name in ("torch", "transformers", "peft")) else "llamacpp"


def load_engine(name: str) -> Engine:
    """The engine of that name. Its runtime is imported now and not before: the page is up before any model is. On
    ZeroGPU the PyTorch engine is another one, in `zerogpu`."""
    if ENGINES[name].isolated:
        return importlib.import_module("inference.engines.isolation").Isolated(name)
    on_zero_gpu = name == "pytorch" and zero_gpu()
    module = "inference.engines.pytorch.zerogpu" if on_zero_gpu else ENGINES[name].module
    return importlib.import_module(module).Engine.from_environment()
