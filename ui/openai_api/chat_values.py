"""The body of a chat completion: which parameters of OpenAI's API are supported, and what they may be.

A parameter that is not supported is refused. It may be sent with the value that changes nothing, because many clients
send all that they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from inference.engines import Message
from inference.validation import shorten
from inference.visitors.values import Conversation, ModelId, SamplingValues, WrongValue, describe, read
from ui.openai_api.api_errors import refuse, unsupported
from ui.openai_api.request_body import Parameters

# Fields of a message that clients send back as they got them.
EMPTY_FIELDS = ("refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content", "name")


class ChatValues(SamplingValues):
    """A chat completion, without its messages."""

    model: ModelId
    stream: bool = Field(False, description="true or false")
    include_usage: bool = Field(False, description="true or false")


PARAMETERS = Parameters(
    known=[*(set(ChatValues.model_fields) - {"include_usage"}), "messages", "stream_options"],
    required=("model", "messages"),
    # They name the caller or tune OpenAI's own servers.
    accepted={
        "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
        "parallel_tool_calls",
    },
    neutral={
        "store": (False,), "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
        "frequency_penalty": (0,), "presence_penalty": (0,), "tools": ([],), "tool_choice": ("none", "auto"),
        "functions": ([],), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
        "modalities": (["text"],), "reasoning_effort": ("none",), "verbosity": ("medium",), "audio": (),
        "prediction": (), "web_search_options": (), "moderation": (),
    },
    aliases={"max_completion_tokens": "max_tokens", "repetition_penalty": "repeat_penalty"},  # OpenAI's new, vLLM's
)  # fmt: skip


def read_chat(body: Mapping[str, Any]) -> tuple[ChatValues, list[Message]]:
    """The values and the conversation of a request. Raises ApiError or WrongValue for the first one that is wrong."""
    values = PARAMETERS.read(body)
    messages = read_messages(values.pop("messages"))
    values |= stream_options(values.pop("stream_options", {}))
    return read(ChatValues, **values), messages


def stream_options(options: object) -> dict[str, Any]:
    """The values of `stream_options`."""
    if not isinstance(options, dict):
        raise refuse("stream_options", f"The stream options can't be {describe(options)}: send an object.")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise unsupported(f"stream_options.{shorten(name)}")
    return {"include_usage": options["include_usage"]} if options.get("include_usage") is not None else {}


def read_messages(messages: object) -> list[Message]:
    """The conversation: texts of system or developer, user and assistant, the last one of the user."""
    if not isinstance(messages, list):
        raise refuse("messages", f"The messages can't be {describe(messages)}: send a list.")
    turns = [read_message(message, f"messages.{i}") for i, message in enumerate(messages)]
    try:
        read(Conversation, messages=turns)
    except WrongValue as error:
        raise refuse(error.parameter or "messages", str(error), "invalid_value") from error
    return [Message(role=turn["role"], content=turn["content"]) for turn in turns]


def read_message(message: object, where: str) -> dict[str, Any]:
    """A message with its role and its text. `where` is its name for errors."""
    if not isinstance(message, dict):
        raise refuse(where, f"A message can't be {describe(message)}: send an object with role and content.")
    turn = {name: value for name, value in message.items() if not (name in EMPTY_FIELDS and value in (None, [], ""))}
    for name in turn:
        if name not in ("role", "content"):
            raise unsupported(f"{where}.{shorten(name)}")
    if turn.get("role") == "developer":  # OpenAI's new name
        turn["role"] = "system"
    if isinstance(turn.get("content"), list):
        turn["content"] = "".join(text_of(part, f"{where}.content.{i}") for i, part in enumerate(turn["content"]))
    return {"role": turn.get("role"), "content": turn.get("content")}


def text_of(part: object, where: str) -> str:
    """The text of a part of a message. Raises ApiError for pictures, sound and files."""
    if not isinstance(part, dict):
        raise refuse(where, f"A part of a message can't be {describe(part)}: send an object with type and text.")
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise refuse(where, f"A part of a message can't be {describe(kind)}: these models read text only.")
    if not isinstance(text, str):
        raise refuse(f"{where}.text", f"The text of a message can't be {describe(text)}: send text.")
    return text
