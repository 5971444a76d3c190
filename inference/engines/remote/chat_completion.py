"""One chat completion: what is requested, and what has been received."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import openai

from inference.engines import Chunk, Figures, Message, Sampling
from inference.engines.remote.server_errors import (
    StreamEnded,
    TooMuchText,
    UnexpectedResponse,
    is_too_long,
    whole_number,
)
from inference.errors import LabError

DEFAULTS = Sampling()
# The fields that servers gave to values of `Sampling`: llama.cpp's name of the repeat penalty, and vLLM's.
BEYOND_OPENAI = {"top_k": ["top_k"], "min_p": ["min_p"], "repeat_penalty": ["repeat_penalty", "repetition_penalty"]}
# vLLM's fields to continue the last message. Servers that ignore them (llama-server) continue it anyway.
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
MAX_COUNT = 100_000_000  # tokens; a larger count of a server is not true
CHARACTERS_PER_TOKEN = 200  # no token of known models has more
# No answer has so many events: a token has one, or a few with servers that split its text.
EVENTS_PER_TOKEN, MORE_EVENTS = 2, 100
UNTRUE_COUNTS = "The server's token counts can't be true, so the parts of the answer are counted: look into its log."


@dataclass
class ChatCompletion:
    """A question to the server and its answer.

    Attributes:
        wants_usage: whether token counts are requested. Some servers refuse that.
        models: the models that the server listed.
        context: how many tokens the model reads; None if the server does not say.
        max_tokens: of the answer: those of `sampling`, or fewer if the server refuses so many.
        inbox: what the reader receives: text, a chunk with a status, an error, or None at the end.
        dropped: how many of the oldest turns were left out.
        received: the number of stream events with text.
        events, characters: how many events and characters came, those of thoughts included, which are not shown.
        shown: how many of the received texts the reader has taken.
        first_at, latest_at: when the first and the latest text came, by `time.perf_counter`.
        usage: the server's `CompletionUsage`, which may have only some of its fields.
    """

    model: str
    messages: list[Message]
    sampling: Sampling
    started_at: float = field(default_factory=time.perf_counter)
    wants_usage: bool = True
    models: list[str] = field(default_factory=list)
    context: int | None = None
    max_tokens: int = field(init=False)
    inbox: queue.SimpleQueue[str | Chunk | LabError | None] = field(default_factory=queue.SimpleQueue)
    dropped: int = 0
    received: int = 0
    events: int = 0
    characters: int = 0
    shown: int = 0
    first_at: float | None = None
    latest_at: float = 0.0
    finish: Literal["stop", "length"] | None = None
    usage: Any = None

    def __post_init__(self) -> None:
        self.max_tokens = self.sampling.max_tokens

    @property
    def continues(self) -> bool:
        """Whether the answer continues the last message."""
        return self.messages[-1]["role"] == "assistant"

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
            "max_tokens": self.max_tokens,
        }
        if self.sampling.seed is not None:
            arguments["seed"] = self.sampling.seed
        if self.sampling.stop:
            arguments["stop"] = list(self.sampling.stop)
        if more := self.beyond_openai | (CONTINUE if self.continues else {}):
            arguments["extra_body"] = more
        if self.wants_usage:
            arguments["stream_options"] = {"include_usage": True}
        return arguments

    def adapt(self, error: Exception) -> bool:
        """Change the request to what the server accepts: no usage, a shorter answer, or fewer turns. Returns False if
        none of them helps."""
        # llama_cpp.server ends the stream without a message if the context is too short.
        silent = isinstance(error, StreamEnded) and not self.received
        if not silent and not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return False
        if self.wants_usage and "stream_options" in str(error):
            self.wants_usage = False
            return True
        least = (self.context or 0) // 4  # tokens that are left for the answer at least, as with the other engines
        if 0 < least < self.max_tokens and (is_too_long(error) or "max_tokens" in str(error)):
            self.max_tokens = max(least, self.max_tokens // 2)
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

    def receive(self, event: Any) -> bool:
        """Record one event of the stream and pass its text on. Returns whether it holds text, also of thoughts, which
        are not shown. Raises UnexpectedResponse if it is malformed, and TooMuchText."""
        try:
            self.usage = event.usage or self.usage
            for choice in event.choices[:1]:
                if choice.finish_reason:
                    self.finish = "length" if choice.finish_reason == "length" else "stop"
                delta = choice.delta
                thought = getattr(delta, "reasoning", None) or getattr(delta, "reasoning_content", None)
                if delta is not None and (delta.content or thought):
                    self._count(delta.content or thought or "")
                    if delta.content:
                        self._add(delta.content)
                    return True
        except (AttributeError, TypeError) as error:
            raise UnexpectedResponse from error
        return False

    def _count(self, text: str) -> None:
        """Count an event with text. Raises TypeError if it is none, and TooMuchText if there is far more than was
        requested."""
        self.events += 1
        self.characters += len(text)
        most = EVENTS_PER_TOKEN * self.max_tokens + MORE_EVENTS
        if self.events > most or self.characters > CHARACTERS_PER_TOKEN * most:
            raise TooMuchText

    def _add(self, text: str) -> None:
        """Pass text on to the reader. Raises AttributeError if it is none."""
        shown = text.replace("\0", "")  # a NUL is not text: with one in it, the conversation would be refused
        self.latest_at = time.perf_counter()
        self.first_at = self.first_at or self.latest_at
        self.received += 1
        self.inbox.put(shown)

    def figures(self, cancelled: bool) -> Figures:
        """The figures of the answer. If the server counts no tokens, or counts that cannot be true, each event with
        text counts as one."""
        usage, details = self.usage, getattr(self.usage, "prompt_tokens_details", None)
        claimed = getattr(usage, "completion_tokens", None), getattr(usage, "prompt_tokens", None)
        generated = whole_number(claimed[0] or 0, min(self.received, 1), self.max_tokens + 1)
        prompt = whole_number(claimed[1] or 0, 0, self.context or MAX_COUNT)
        untrue = usage is not None and claimed[0] is not None and (generated is None or prompt is None)
        count = self.received if untrue else generated or self.received
        seconds = self.latest_at - self.first_at if self.first_at else 0
        return Figures(
            prompt_tokens=0 if untrue else prompt or 0,
            cached_tokens=whole_number(getattr(details, "cached_tokens", None), 0, 0 if untrue else prompt or 0) or 0,
            completion_tokens=self.shown if untrue else generated or self.shown,
            seconds_to_first_token=self.first_at - self.started_at if self.first_at else None,
            tokens_per_second=(count - 1) / seconds if count > 1 and seconds else None,
            finish_reason="cancelled" if cancelled else self.finish or "stop",
            dropped_turns=self.dropped,
            context_tokens=self.context,
            note=UNTRUE_COUNTS if untrue else "",
        )
