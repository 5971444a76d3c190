"""The protocol of an engine: one way to run a model. The page and the terminal import only this module.

An engine takes chat messages and yields `Chunk`s while the text is generated. It knows nothing of the catalog or the
Hub: it gets files on this disk, or the name of a model on a server. Each runtime has a package of its own here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

from inference.errors import LabError
from inference.settings import zero_gpu
from inference.validation import nearest


@dataclass(frozen=True)
class EngineInfo:
    """What is known about an engine before its runtime is imported.

    Attributes:
        module: the module that has the class `Engine`.
        label: the engine's name on the page.
        takes: the form of a model: a GGUF file, a folder with safetensors, or the name of a model on a server.
        isolated: whether it runs in a process of its own, because a broken file can crash its process.
    """

    module: str
    label: str
    takes: Literal["gguf", "safetensors", "served"]
    isolated: bool = False


ENGINES = {
    "llamacpp": EngineInfo("inference.engines.llamacpp.engine", "CPU, llama.cpp", "gguf", isolated=True),
    "pytorch": EngineInfo("inference.engines.pytorch.engine", "PyTorch", "safetensors"),
    "remote": EngineInfo("inference.engines.remote.engine", "remote server", "served"),
}


class Message(TypedDict):
    """One chat message; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and where the answer ends.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: tokens are drawn from the most likely ones whose probabilities add up to this.
        seed: None is a random seed.
        stop: the answer ends before the first of these texts.
        top_k: tokens are drawn from at most so many of the most likely ones.
        min_p: tokens less likely than this share of the most likely one are never drawn.
        repeat_penalty: how much less likely the last `REPEAT_WINDOW` tokens of the answer become: positive logits are
            divided by it, negative ones multiplied (Keskar et al. 2019, section 4.1). 1 changes nothing.
        strength: a factor on the scale of the LoRA adapter. 0 is the base, 1 the adapter as it was trained. A model
            without an adapter ignores it.
    """

    temperature: float = 0.2
    top_p: float = 0.9
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_k: int = 40  # llama.cpp's default. Sorting all 128,000 candidates for top-p would cost more than it changes
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    strength: float = 1.0


MAX_TOP_K = 100  # of `Sampling.top_k`
MAX_STRENGTH = 1.5  # of `Sampling.strength`: above it, adapters mostly repeat themselves
REPEAT_WINDOW = 64  # tokens of the answer that `Sampling.repeat_penalty` looks back; llama.cpp's default


@dataclass(frozen=True)
class ModelFiles:
    """The paths of a base and, optionally, of a LoRA adapter on it. They are GGUF files or folders, see
    `EngineInfo.takes`. `template` is a chat template for a base that has none."""

    base: Path
    adapter: Path | None = None
    template: str | None = None


@dataclass(frozen=True)
class ActiveAdapter:
    """A LoRA adapter at a strength other than 0, see `Sampling.strength`: what a pass computes beside the base."""

    path: Path
    strength: float = 1.0


Model = ModelFiles | str  # files on this disk, or the name of a model on a server


@dataclass(frozen=True)
class Figures:
    """The token counts and the speed of one answer. `tokens_per_second` is measured after the first token. It is None
    for an answer of fewer than two tokens. `context_tokens` is how many tokens the model reads, prompt and answer
    together; None if a server does not say. `note` is a sentence about the answer, such as which engine took over."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds_to_first_token: float | None
    tokens_per_second: float | None
    finish_reason: Literal["stop", "length", "cancelled"]
    dropped_turns: int = 0
    context_tokens: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Chunk:
    """A part of an answer: new `text`, or what the answer is `waiting` for ("loading"). The last chunk has the
    `figures`."""

    text: str = ""
    waiting: str | None = None
    figures: Figures | None = None


@dataclass(frozen=True)
class AnswerScore:
    """How likely a model finds a given answer. Its tokens include the end-of-turn token of the chat template.

    Attributes:
        log_likelihood: the sum over the tokens of log p(token | all tokens before it), in nats.
        tokens: the number of tokens.
        greedy: whether each token is the most likely one, so that greedy decoding gives this answer.
    """

    log_likelihood: float
    tokens: int
    greedy: bool


class Engine(Protocol):
    """One way to run a model. Each engine's module has a class `Engine` with these methods."""

    @classmethod
    def from_environment(cls) -> Engine:
        """Create the engine from environment variables. Raises LabError if one is missing or invalid."""

    def stream(
        self, model: Any, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """Answer the last message. If it is the assistant's, continue it.

        Args:
            model: a `Model` in the form that the engine takes.
            messages: the conversation. If it is longer than the context, the oldest turns are dropped.
            sampling: how tokens are chosen.
            cancelled: the answer ends within one token after this returns True.

        Yields:
            Text in complete characters. The last chunk has figures.

        Raises:
            LabError: the files cannot be run, or the question is longer than the context.
        """

    def score(self, model: Any, messages: Sequence[Message], answer: str, strength: float = 1.0) -> AnswerScore:
        """Compute how likely `answer` is as the assistant's next message, for held-out loss and comparisons.

        `strength` is that of `Sampling`. No turn is dropped. Raises LabError if the text is longer than the context, if
        the files cannot be run, or if the engine cannot score.
        """

    def in_memory(self, model: Any) -> bool:
        """Whether the model is loaded."""

    def close(self) -> None:
        """Free the memory. The next question loads its model again."""


class ModelServer(Engine, Protocol):
    """An engine that takes the names of a server's models."""

    def models(self) -> list[str]:
        """The names of the server's models. Raises LabError if the server is unreachable."""


def choose_engine(setting: str) -> str:
    """The name of the engine for a value of ENGINE, without importing a runtime.

    "auto" means: remote if REMOTE_URL is set; PyTorch if there is an NVIDIA GPU or ZeroGPU, and its packages are
    installed; else llama.cpp. Raises LabError for an unknown name.
    """
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
    """Import the runtime of engine `name` and create the engine. On ZeroGPU, "pytorch" means `pytorch.zerogpu`."""
    if ENGINES[name].isolated:
        return importlib.import_module("inference.engines.isolation.engine").IsolatedEngine(name)
    on_zero_gpu = name == "pytorch" and zero_gpu()
    module = "inference.engines.pytorch.zerogpu" if on_zero_gpu else ENGINES[name].module
    return importlib.import_module(module).Engine.from_environment()
