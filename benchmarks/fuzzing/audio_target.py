"""Recordings, through the speech process: decoding and transcription with the embedded model."""

from __future__ import annotations

import io
from functools import cached_property
from random import Random

import numpy as np

from benchmarks.fuzzing.mutations import mutate_bytes
from benchmarks.fuzzing.target import RECORDING, Input
from inference.speech import SAMPLE_RATE, Transcriber, Transcript, decode

# Extension: PyAV's container and codec.
CONTAINERS = {
    "wav": ("wav", "pcm_s16le"), "mp3": ("mp3", "libmp3lame"), "m4a": ("ipod", "aac"), "ogg": ("ogg", "libopus"),
    "flac": ("flac", "flac"),
}  # fmt: skip
HEADER = 512  # bytes


class Recordings:
    """Mutations of a recording in five containers."""

    seconds = 10.0

    def __init__(self) -> None:
        self._transcriber = Transcriber("")  # the embedded model

    @cached_property
    def _original(self) -> dict[str, bytes]:
        samples = decode(RECORDING).samples
        return {name: encode(samples, *container) for name, container in CONTAINERS.items()}

    def make(self, rng: Random) -> Input:
        """See `Target`."""
        variant = rng.choice(list(CONTAINERS))
        return Input(variant, mutate_bytes(self._original[variant], rng, HEADER))

    def run(self, given: Input) -> str:
        """See `Target`."""
        return self._transcribe(given.content)

    def well_behaved(self) -> bool:
        """See `Target`."""
        return "panda" in self._transcribe(RECORDING.read_bytes())

    def restart(self) -> None:
        """See `Target`."""
        self._transcriber.close()

    def close(self) -> None:
        """See `Target`."""
        self._transcriber.close()

    def _transcribe(self, content: bytes) -> str:
        *_, last = self._transcriber.transcribe(content)
        assert isinstance(last, Transcript)
        return last.text


def encode(samples: np.ndarray, container: str, codec: str) -> bytes:
    """`samples`, float32 mono at `SAMPLE_RATE`, in a container."""
    import av
    from av.audio.stream import AudioStream

    file = io.BytesIO()
    # Without "bitexact", Ogg gets a random serial number.
    with av.open(file, "w", format=container, options={"fflags": "+bitexact"}) as output:
        rate = 48_000 if codec == "libopus" else SAMPLE_RATE
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, AudioStream)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()
