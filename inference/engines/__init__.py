"""What an engine is: one way to run a model, behind one small protocol. The page and the terminal know only this.

An engine takes chat messages and yields `Chunk`s as text appears. It knows nothing of the catalog or the Hub: it is
handed files that lie on this disk.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict

# An engine's module, and how the page names it.
ENGINE_LABELS = {"llamacpp": "CPU, llama.cpp"}


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
    """The files that make up one model: a base, and the LoRA adapter on it, if it is one."""

    base: Path
    adapter: Path | None = None


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


class Engine(Protocol):
    """One way to run a model. It is the class `Engine` of a module of this package."""

    def stream(
        self, files: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """Answer the last message. Whole characters only; ends within one token of `cancelled()`; the last chunk has
        figures. Raises LabError for files that can't be run and questions that don't fit."""

    def in_memory(self, files: ModelFiles) -> bool:
        """Whether answering would load nothing."""

    def close(self) -> None:
        """Free the memory."""


def load_engine(name: str) -> Engine:
    """The engine of that name. Its runtime is imported now and not before: the page is up before any model is."""
    return importlib.import_module(f"inference.engines.{name}").Engine()
