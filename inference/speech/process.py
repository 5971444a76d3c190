"""The speech process: decodes recordings and transcribes them. Strangers' recordings are read here and nowhere else.

`python -m inference.speech.process DESCRIPTOR PARENT LIMITS DEVICE`. DEVICE is "cpu", or "" for the GPU if it works.
Messages from the parent, and the replies:

    ["load", name]                       ["loaded"], or ["missing"] if the checkpoint must be downloaded first
    ["transcribe", language, max_seconds] and the recording's file descriptor
                                         ["decoded", seconds], ["words", text so far] while a long recording is read,
                                         then ["transcript", text, language, note]

Each can be answered by ["error", sentence] instead.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import LabError
from inference.processes.channel import Channel
from inference.processes.child import connect

if TYPE_CHECKING:
    import whisper

SILENCE = 10 ** (-60 / 20)  # a peak below -60 dB of full scale is no voice at any distance
NO_SPEECH_MESSAGE = (
    "No speech was recognised. Speak louder or closer to the microphone, and check that it is the right one."
)


class SpeechProcess:
    """Answers the parent's messages."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device or None
        self._model: whisper.Whisper | None = None

    def run(self) -> None:
        """Answer until the parent closes the channel."""
        while True:
            try:
                kind, *values = self._channel.receive()
            except EOFError:
                return
            try:
                if kind == "load":
                    self._load(*values)
                else:
                    self._transcribe(*values)
            except LabError as error:
                self._channel.send("error", str(error))
            except MemoryError:
                self._channel.send("error", "This recording needs too much memory: send a shorter one.")

    def _load(self, name: str) -> None:
        from inference.speech.whisper_model import embedded_whisper, load_whisper

        try:
            self._model = embedded_whisper() if name == "" else load_whisper(name, self._device)
        except LabError as error:
            if Path(name).is_file() or not isinstance(error.__cause__, OSError):  # a download needs network and disk
                raise
            self._channel.send("missing")
        else:
            self._channel.send("loaded")

    def _transcribe(self, language: str | None, max_seconds: float) -> None:
        from inference.speech.audio import decode
        from inference.speech.windows import transcribe_samples

        descriptor = self._channel.receive_descriptor()
        with os.fdopen(descriptor, "rb") as file:
            recording = decode(file, max_seconds)
        self._channel.send("decoded", recording.seconds)
        if np.abs(recording.samples).max() < SILENCE:
            raise LabError(NO_SPEECH_MESSAGE)
        assert self._model is not None
        found = ("", "")
        for found in transcribe_samples(self._model, recording.samples, language):
            self._channel.send("words", found[0])
        if not found[0]:
            raise LabError(NO_SPEECH_MESSAGE)
        self._channel.send("transcript", *found, recording.note)


def main(arguments: Sequence[str]) -> None:
    """The process's program."""
    channel, (device,) = connect(arguments)
    SpeechProcess(channel, device).run()


if __name__ == "__main__":
    main(sys.argv[1:])
