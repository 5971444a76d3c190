"""`/v1/audio/transcriptions` and `/v1/audio/speech`: the page's speech recognition and its voice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from inference.lab import Lab
from inference.shutdown import RESTARTING, Restarting
from inference.speech import Transcript, TranscriptionProgress
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import Name, Values, read, text
from inference.voice import wav_bytes
from ui.openai_api.answer_stream import LiveResponse, Steps, while_connected
from ui.openai_api.api_errors import ApiError, refuse
from ui.openai_api.request_body import Parameters, read_json, sender_of
from ui.openai_api.request_queue import RequestQueue

MAX_INPUT = 4096  # characters of a text to be spoken; OpenAI's limit
MAX_FIELDS = 20  # of a form
RECOGNIZER, READER = "whisper-1", "tts-1"  # OpenAI's names, which clients have as their default
VOICES = ("default", "alloy")  # the one voice, and OpenAI's first name, which clients send
Spoken = tuple[int, "np.ndarray[Any, np.dtype[np.float32]]"]


class TranscriptionValues(Values):
    """The fields beside the recording."""

    model: Name
    language: Name = ""
    response_format: Literal["json", "text"] = Field("json", description="json or text")


class SpeechValues(Values):
    """A text to be spoken."""

    model: Name
    input: Annotated[str, text(MAX_INPUT)]
    voice: Name = VOICES[0]
    response_format: Literal["wav", "pcm"] = Field("wav", description="wav or pcm")
    speed: float = Field(1.0, ge=0.5, le=2, allow_inf_nan=False, description="a number from 0.5 to 2")


TRANSCRIPTION = Parameters(
    known=[*TranscriptionValues.model_fields, "file"],
    required=("file", "model"),
    neutral={
        "prompt": ("",), "temperature": ("0", "0.0"), "stream": ("false", "False"), "chunking_strategy": ("auto",),
        "timestamp_granularities[]": (), "include[]": (),
    },
)  # fmt: skip
SPEECH = Parameters(
    known=SpeechValues.model_fields, required=("model", "input"),
    neutral={"instructions": ("",), "stream_format": ("audio",)},
)  # fmt: skip


class Sound:
    """The endpoints. `pool` has the threads in which the work is done."""

    def __init__(self, lab: Lab, limits: VisitorLimits, queue: RequestQueue, pool: ThreadPoolExecutor) -> None:
        self._lab, self._limits, self._queue, self._pool = lab, limits, queue, pool

    async def transcribe(self, request: Request) -> Response:
        """Transcribe a recording, which a form has as its file."""
        with self._limits.admit(sender_of(request), "recording"):
            async with request.form(max_files=1, max_fields=MAX_FIELDS) as form, self._queue.slot():
                values, file = read_form(form)
                if values.model not in (RECOGNIZER, self._lab.transcriber.name):
                    raise unknown(values.model, RECOGNIZER)
                content = await file.read()
                steps = Steps(self._pool, lambda stopped: self._steps(content, values.language, stopped))
                transcript = None
                async for step in while_connected(request, steps.run()):
                    transcript = step if isinstance(step, Transcript) else transcript
        if transcript is None:
            raise Restarting(RESTARTING)
        if values.response_format == "text":
            return PlainTextResponse(f"{transcript.text}\n")
        duration = {"type": "duration", "seconds": transcript.duration}
        return JSONResponse({"text": transcript.text, "usage": duration})

    def _steps(
        self, content: bytes, language: str, stopped: Callable[[], bool]
    ) -> Generator[TranscriptionProgress | Transcript]:
        yield from self._lab.transcribe(content, language or None, stopped)

    async def speak(self, request: Request) -> Response:
        """Read a text aloud: a WAV file, or raw samples (16 bit, mono, little-endian) while they are spoken."""
        values = read(SpeechValues, **SPEECH.read(await read_json(request)))
        if values.model != READER:
            raise unknown(values.model, READER)
        if values.voice not in VOICES:
            raise refuse("voice", f"There is one voice: set voice to {' or '.join(VOICES)}.")
        sentences = while_connected(request, self._sentences(request, values))
        if values.response_format == "wav":
            spoken = [sentence async for sentence in sentences if sentence]
            sound = np.concatenate([each for _, each in spoken])
            return Response(wav_bytes(spoken[0][0], sound), media_type="audio/wav")
        first = await first_of(sentences)
        media_type = f"audio/pcm; rate={first[0]}; channels=1"
        return LiveResponse(samples(first, sentences), sentences, media_type)

    async def _sentences(self, request: Request, values: SpeechValues) -> AsyncGenerator[Spoken]:
        def spoken(stopped: Callable[[], bool]) -> Generator[Spoken]:
            with self._lab.shutdown.work():
                for sentence in self._lab.voice.speak(values.input, values.speed):
                    yield sentence
                    if stopped() or self._lab.shutdown.stopping:
                        return

        with self._limits.admit(sender_of(request), "text"):
            async with self._queue.slot():
                async for sentence in Steps(self._pool, spoken).run():
                    yield sentence


def read_form(form: FormData) -> tuple[TranscriptionValues, UploadFile]:
    """The fields of a form and its file. Raises ApiError or WrongValue."""
    values = TRANSCRIPTION.read(dict(form))
    file = values.pop("file")
    if not isinstance(file, UploadFile):
        raise refuse("file", "The file is a text: send a recording as a file of the form.")
    return read(TranscriptionValues, **values), file


def unknown(model: str, known: str) -> ApiError:
    """The error for a model that this endpoint does not have."""
    return ApiError(404, f"There is no model “{model}” here: use {known}.", "model_not_found", "model")


async def first_of(sentences: AsyncGenerator[Spoken | None]) -> Spoken:
    """The first sentence."""
    async for sentence in sentences:
        if sentence:
            return sentence
    raise Restarting(RESTARTING)


async def samples(first: Spoken, rest: AsyncGenerator[Spoken | None]) -> AsyncGenerator[bytes]:
    """The samples of all sentences."""
    yield pcm_bytes(first)
    async for sentence in rest:
        if sentence:
            yield pcm_bytes(sentence)


def pcm_bytes(sentence: Spoken) -> bytes:
    """Samples in [-1, 1] as 16-bit integers, little-endian."""
    return (np.clip(sentence[1], -1, 1) * 32767).astype("<i2").tobytes()
