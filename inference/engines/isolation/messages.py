"""Calls, chunks and scores as JSON values. What comes from the child is validated: a stranger may control it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from inference.engines import AnswerScore, Chunk, ModelFiles, Sampling

CHUNK = TypeAdapter(Chunk)
SCORE = TypeAdapter(AnswerScore)
FILES = TypeAdapter(ModelFiles)
SAMPLING = TypeAdapter(Sampling)


def files_to_json(files: ModelFiles) -> dict[str, str | None]:
    """The paths as text, and the chat template."""
    adapter = None if files.adapter is None else str(files.adapter)
    return {"base": str(files.base), "adapter": adapter, "template": files.template}


def arguments_to_json(method: str, arguments: tuple[Any, ...]) -> list[Any]:
    """The arguments of an engine's method."""
    if method == "close":
        return []
    files, *rest = arguments
    if method == "stream":
        messages, sampling = rest
        rest = [messages, asdict(sampling)]
    return [files_to_json(files), *rest]


def arguments_from_json(method: str, values: list[Any]) -> list[Any]:
    """The inverse."""
    if method == "close":
        return []
    files, *rest = values
    if method == "stream":
        messages, sampling = rest
        rest = [messages, SAMPLING.validate_python(sampling)]
    return [FILES.validate_python(files), *rest]


def result_from_json(kind: str, value: Any) -> Any:
    """A chunk, a score, a truth value, nothing, or an error's message. Raises pydantic.ValidationError."""
    if kind == "chunk":
        return CHUNK.validate_python(value)
    if kind == "value" and isinstance(value, dict):
        return SCORE.validate_python(value)
    if kind == "error":
        return str(value)[:2000]
    return bool(value) if value is not None else None
