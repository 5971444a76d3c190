"""The list of a server's models (`GET /v1/models`), checked: their names, and how many tokens they read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openai

from inference.engines.remote.server_errors import UnexpectedResponse, whole_number
from inference.errors import LabError

MAX_AGE = 5.0  # seconds for which the list is used again
MAX_MODELS = 1_000  # of the list
MAX_NAME = 200  # characters of a model's name
MAX_CONTEXT = 100_000_000  # tokens


@dataclass(frozen=True)
class ModelListing:
    """The server's models or the error that was raised, and when (`time.monotonic`).

    Attributes:
        models: the names of the models that answer.
        contexts: how many tokens a model reads, for those of which the server says so (vLLM's `max_model_len`).
        whisper: the name of a Whisper model, which transcribes; None if the server has none.
    """

    at: float = field(default_factory=time.monotonic)
    models: tuple[str, ...] = ()
    contexts: Mapping[str, int] = field(default_factory=dict)
    whisper: str | None = None
    error: LabError | None = None

    @property
    def recent(self) -> bool:
        """Whether it is used again."""
        return time.monotonic() - self.at <= MAX_AGE


async def read_listing(client: openai.AsyncOpenAI) -> ModelListing:
    """Ask the server for the list. Raises UnexpectedResponse and the client's errors."""
    try:
        page = await client.models.list()
        cards = {card.id: card for card in page.data[:MAX_MODELS] if is_name(card.id)}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UnexpectedResponse from error
    contexts = {name: context for name, card in cards.items() if (context := context_of(card, cards))}
    speech = [name for name in cards if "whisper" in name.lower()]
    answering = tuple(name for name in cards if name not in speech)
    return ModelListing(models=answering, contexts=contexts, whisper=speech[0] if speech else None)


def is_name(value: object) -> bool:
    """Whether a value from the server can be the name of a model."""
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable() and bool(value.strip())


def context_of(card: Any, cards: Mapping[str, Any]) -> int | None:
    """The tokens that a model reads. vLLM says it of the base alone, which is the `parent` of an adapter."""
    own = whole_number(getattr(card, "max_model_len", None), 1, MAX_CONTEXT)
    parent = getattr(card, "parent", None)
    base = cards.get(parent) if isinstance(parent, str) else None
    return own or whole_number(getattr(base, "max_model_len", None), 1, MAX_CONTEXT)
