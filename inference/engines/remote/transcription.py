"""Speech recognition by a server's Whisper (`POST /v1/audio/transcriptions`), with the response checked."""

from __future__ import annotations

import math
from typing import Any

import openai

from inference.engines.remote.server_errors import UnexpectedResponse

MAX_TEXT = 20_000  # characters of a transcript: an hour of fast speech has fewer than three times as many


async def transcribe(
    client: openai.AsyncOpenAI, model: str, recording: bytes, language: str | None
) -> tuple[str, float]:
    """The text of a recording and its length in seconds, 0 if the server does not say it. Raises UnexpectedResponse and
    the client's errors."""
    options: dict[str, Any] = {"language": language} if language else {}
    try:
        found: Any = await client.audio.transcriptions.create(
            model=model, file=("recording", recording), response_format="json", **options
        )
        text = found.text.replace("\0", "").strip()
        if len(text) > MAX_TEXT:
            raise UnexpectedResponse
        seconds = getattr(getattr(found, "usage", None), "seconds", None)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UnexpectedResponse from error
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        seconds = 0
    return text, float(seconds)
