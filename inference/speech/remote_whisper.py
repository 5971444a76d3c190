"""Speech recognition by the Whisper of a remote server, if it has one; else by the one on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from inference.errors import LabError, ServerUnavailable
from inference.speech.process import NO_SPEECH_MESSAGE
from inference.speech.transcriber import (
    TRANSCRIBING,
    Transcriber,
    Transcript,
    TranscriptionProgress,
    language_code,
    open_descriptor,
)

MAX_BYTES = 100_000_000  # of a recording that is sent


class SpeechServer(Protocol):
    """A server that may have a Whisper."""

    def whisper(self) -> str | None:
        """The name of its Whisper, or None. Raises LabError if the server is unreachable."""

    def transcribe(
        self, model: str, recording: bytes, language: str | None, cancelled: Callable[[], bool]
    ) -> tuple[str, float] | None:
        """The text of a recording and its length in seconds; None once `cancelled`. Raises LabError."""


class RemoteTranscriber(Transcriber):
    """Asks the server, and transcribes here if it has no Whisper or does not answer."""

    def __init__(self, name: str, server: Callable[[], SpeechServer]) -> None:
        super().__init__(name)
        self._server = server

    def transcribe(
        self, source: str | Path | bytes, language: str | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """See `Transcriber.transcribe`."""
        model = self._whisper()
        if model:
            yield TranscriptionProgress(TRANSCRIBING)
            try:
                transcript = self._ask(model, source, language_code(language), cancelled)
            except ServerUnavailable:
                pass
            else:
                yield from [transcript] if transcript else []
                return
        yield from super().transcribe(source, language, cancelled)

    def load(self) -> Iterator[TranscriptionProgress]:
        """Load the model on this machine if the server has none."""
        if not self._whisper():
            yield from super().load()

    def _whisper(self) -> str | None:
        try:
            return self._server().whisper()
        except LabError:
            return None

    def _ask(
        self, model: str, source: str | Path | bytes, language: str | None, cancelled: Callable[[], bool]
    ) -> Transcript | None:
        started = time.perf_counter()
        with open_descriptor(source) as descriptor:
            recording = os.pread(descriptor, MAX_BYTES + 1, 0)
        if len(recording) > MAX_BYTES:
            raise LabError("This recording is too large: send a shorter one.")
        found = self._server().transcribe(model, recording, language, cancelled)
        if found is None:
            return None
        text, duration = found
        if not text:
            raise LabError(NO_SPEECH_MESSAGE)
        return Transcript(text, language or "", duration, round(time.perf_counter() - started, 3), model)
