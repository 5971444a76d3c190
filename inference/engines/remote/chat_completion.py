"""One chat completion: what is requested, and what has been received."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

from inference.engines import Chunk, Figures, Message, Sampling
from inference.engines.remote.server_errors import StreamEnded, UnexpectedResponse, is_too_long
from inference.errors import LabError

DEFAULTS = Sampling()
# The fields that servers gave to values of `Sampling`: llama.cpp's name of the repeat penalty, and vLLM's.
BEYOND_OPENAI = {"top_k": ["top_k"], "min_p": ["min_p"], "repeat_penalty": ["repeat_penalty", "repetition_penalty"]}


@dataclass
class ChatCompletion:
    """A question to the server and its answer.

    Attributes:
        wants_usage: whether token counts are requested. Some servers refuse that.
        models: the models that the server listed.
        inbox: what the reader receives: text, a chunk with a status, an error, or None at the end.
        dropped: how many of the oldest turns were left out.
        received: the number of stream events with text.
        shown: how many of these the reader has taken.
        first_at, latest_at: when the first and the latest text came, by `time.perf_counter`.
    """

    model: str
    messages: list[Message]
    sampling: Sampling
    started_at: float = field(default_factory=time.perf_counter)
    wants_usage: bool = True
    models: list[str] = field(default_factory=list)
    inbox: queue.SimpleQueue[str | Chunk | LabError | None] = field(default_factory=queue.SimpleQueue)
    dropped: int = 0
    received: int = 0
    shown: int = 0
    first_at: float | None = None
    latest_at: float = 0.0
    finish: Literal["stop", "length"] | None = None
    usage: Any = None  # the client's CompletionUsage, which servers fill in only partly

    @property
    def beyond_openai(self) -> dict[str, float]:
        """The values that OpenAI's API has no fields for: only those that are not the default, because some servers
        refuse them."""
        changed = [name for name in BEYOND_OPENAI if getattr(self.sampling, name) != getattr(DEFAULTS, name)]
        return {field: getattr(self.sampling, name) for name in changed for field in BEYOND_OPENAI[name]}

    def arguments(self) -> dict[str, Any]:
        """The arguments of `chat.completions.create`."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_tokens,
        }
        if self.sampling.seed is not None:
            arguments["seed"] = self.sampling.seed
        if self.sampling.stop:
            arguments["stop"] = list(self.sampling.stop)
        if self.beyond_openai:
            arguments["extra_body"] = self.beyond_openai
        if self.wants_usage:
            arguments["stream_options"] = {"include_usage": True}
        return arguments

    def adapt(self, error: Exception) -> bool:
        """Change the request to what the server accepts: no usage, or fewer turns. Returns False if neither helps."""
        # llama_cpp.server ends the stream without a message if the context is too short.
        silent = isinstance(error, StreamEnded) and not self.received
        if not silent and not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return False
        if self.wants_usage and "stream_options" in str(error):
            self.wants_usage = False
            return True
        system = self.messages[:1] if self.messages[0]["role"] == "system" else []
        turns = self.messages[len(system) :]
        questions = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
        if not questions or not (silent or is_too_long(error)):
            return False
        dropped = (len(questions) + 1) // 2 if silent else 1  # few attempts if the reason may be another one
        self.messages = [*system, *turns[questions[dropped - 1] :]]
        self.dropped += dropped
        return True

    def receive(self, event: Any) -> None:
        """Record one event of the stream and pass its text on. Raises UnexpectedResponse if it is malformed."""
        try:
            self.usage = event.usage or self.usage
            for choice in event.choices[:1]:
                if choice.finish_reason:
                    self.finish = "length" if choice.finish_reason == "length" else "stop"
                if choice.delta is not None and choice.delta.content:
                    self.latest_at = time.perf_counter()
                    self.first_at = self.first_at or self.latest_at
                    self.received += 1
                    self.inbox.put(choice.delta.content)
        except (AttributeError, TypeError) as error:
            raise UnexpectedResponse from error

    def figures(self, cancelled: bool) -> Figures:
        """The figures of the answer. If the server counts no tokens, each event with text counts as one."""
        details = getattr(self.usage, "prompt_tokens_details", None)
        counted = getattr(self.usage, "completion_tokens", None)
        count = counted or self.received
        seconds = self.latest_at - self.first_at if self.first_at else 0
        return Figures(
            prompt_tokens=getattr(self.usage, "prompt_tokens", None) or 0,
            cached_tokens=getattr(details, "cached_tokens", None) or 0,
            completion_tokens=counted or self.shown,
            seconds_to_first_token=self.first_at - self.started_at if self.first_at else None,
            tokens_per_second=(count - 1) / seconds if count > 1 and seconds else None,
            finish_reason="cancelled" if cancelled else self.finish or "stop",
            dropped_turns=self.dropped,
        )
