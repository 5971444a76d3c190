"""Transcribe recordings with one Whisper model, which is loaded at the first one.

If the model named in the environment cannot be downloaded, the embedded speech model transcribes and a note says so.
Speech is English, or what WHISPER_MODEL knows. Speaker labels, translation and time stamps are not supported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

import numpy as np

from inference.errors import LabError
from inference.speech.audio import MAX_SECONDS, SAMPLE_RATE, decode
from inference.speech.whisper_model import (
    EMBEDDED,
    download_progress,
    embedded_checkpoint,
    load_whisper,
    transcribe_samples,
)

if TYPE_CHECKING:
    import whisper

EMBEDDED_NOTE = "Offline speech model: it knows short English questions about emoji in synthetic voices."
NO_SPEECH_MESSAGE = (
    "No speech was recognised. Speak louder or closer to the microphone, and check that it is the right one."
)
SILENCE = 10 ** (-60 / 20)  # a peak below -60 dB of full scale is no voice at any distance
POLL_SECONDS = 0.25  # between two progress reports while the model loads


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    `language` is a code such as "en", `duration` the length of the recording (s), `seconds` the time that
    transcription took. `note` is a sentence about the model, or "".
    """

    text: str
    language: str
    duration: float
    seconds: float
    model: str
    note: str = ""


@dataclass(frozen=True)
class TranscriptionProgress:
    """A step before the transcript: `waiting` says what is in progress."""

    waiting: str


class Transcriber:
    """One Whisper model and its loading. `name` is one of Whisper's own names or the path of a checkpoint.

    Transcribes one recording at a time, because Whisper already uses every core.
    """

    def __init__(self, name: str = "base", max_seconds: float = MAX_SECONDS) -> None:
        self.name = name
        self.max_seconds = max_seconds
        self.note = ""  # a sentence about the loaded model
        self.loaded_name = name  # "nano-speech" if the embedded model replaces `name`
        self._model: whisper.Whisper | None = None
        self._lock = threading.Lock()

    def transcribe(
        self, source: str | Path | bytes, language: str | None = None
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """Yield progress, then the transcript. `language` is a code such as "en"; None detects it.

        Raises:
            LabError: the recording is not readable or holds no speech, or the model cannot be loaded.
        """
        started = time.perf_counter()
        audio = decode(source, self.max_seconds)
        if np.abs(audio).max() < SILENCE:
            raise LabError(NO_SPEECH_MESSAGE)
        yield from self.load()
        yield TranscriptionProgress("transcribing")
        with self._lock:
            text, detected = transcribe_samples(self._load(), audio, language)
        if not text:
            raise LabError(NO_SPEECH_MESSAGE)
        yield Transcript(
            text,
            detected,
            duration=round(audio.size / SAMPLE_RATE, 2),
            seconds=round(time.perf_counter() - started, 3),
            model=self.loaded_name,
            note=self.note,
        )

    def load(self) -> Iterator[TranscriptionProgress]:
        """Load the model if it is not in memory, and yield progress. The page does so while its visitor speaks."""
        if self._model is not None:
            return
        loading: Future[whisper.Whisper] = Future()

        def work() -> None:
            try:
                loading.set_result(self._load())
            except Exception as error:
                loading.set_exception(error)

        threading.Thread(target=work, daemon=True).start()  # a daemon thread does not keep the process from ending
        while not loading.done():
            yield TranscriptionProgress(download_progress(self.name) or "loading the speech model")
            wait([loading], timeout=POLL_SECONDS)
        loading.result()

    def _load(self) -> whisper.Whisper:
        with _LOADING:
            if self._model is None:
                try:
                    self._model = load_whisper(self.name)
                except LabError as error:
                    if not isinstance(error.__cause__, URLError) or not EMBEDDED.is_file():
                        raise
                    self._model = load_whisper(str(embedded_checkpoint()))
                    self.loaded_name = EMBEDDED.parent.name
                    self.note = f"{EMBEDDED_NOTE} {error}"
            return self._model


_LOADING = threading.Lock()  # two recordings at once share one download
