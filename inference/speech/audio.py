"""Decode a recording of any format into mono samples at 16 kHz, with PyAV (FFmpeg's libraries) and bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from inference.errors import LabError

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler, Packet
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz, the rate that Whisper expects
MAX_SECONDS = 300.0
MIN_SECONDS = 0.01
MAX_DAMAGED = 1000  # places in a file that FFmpeg cannot read
CANCELLED = 0.05  # a mix below this share of one channel's peak: the channels cancel each other out
MIN_BYTES_PER_SECOND = 32  # no codec needs less, so a header that implies less is wrong

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """Decoded sound: `samples` are float32 in [-1, 1], mono, 16 kHz, shape (samples,). `note` is a sentence if the file
    is damaged, else ""."""

    samples: Samples
    note: str = ""

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.samples.size / SAMPLE_RATE


def decode(source: str | Path | bytes | BinaryIO, max_seconds: float = MAX_SECONDS) -> Recording:
    """Decode a recording. Accepts every container and codec that FFmpeg knows. Damaged packets are left out; the sound
    after them is kept.

    Raises:
        LabError: the file is not a recording, has no sound, or lasts longer than `max_seconds`. Decoding stops at
            that limit.
    """
    import av

    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source) if isinstance(source, Path) else source
    mixer = Mixer(max_seconds)
    damaged = 0
    try:
        with av.open(opened, "r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise LabError("This recording has no sound: record again, or choose another file.")
            stream = container.streams.audio[0]
            stated = stated_seconds(container, stream)
            if stated > max_seconds:
                raise too_long(stated, max_seconds)
            for packet in packets(container, stream):
                if packet is None:
                    damaged += 1
                    continue
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    damaged += 1
                    continue
                for frame in frames:
                    mixer.add(cast("AudioFrame", frame))
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise LabError("This file is not a readable recording: record again, or choose an audio file.") from error
    samples = mixer.finish()
    if samples.size < MIN_SECONDS * SAMPLE_RATE:
        reason = "is damaged from its start" if damaged else "is empty"
        raise LabError(f"This recording {reason}: record again, or choose another file.")
    note = "The recording is damaged: some words may be missing." if damaged else ""
    return Recording(samples, note)


def packets(container: InputContainer, stream: AudioStream) -> Iterator[Packet | None]:
    """Yield the packets of a stream, and None for each place where the container cannot be read."""
    import av

    demuxer = container.demux(stream)
    for _ in range(MAX_DAMAGED):
        try:
            yield from demuxer
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            yield None
            demuxer = container.demux(stream)  # reading resumes after the damaged part


class Mixer:
    """Resamples frames to mono at `SAMPLE_RATE`; the frames may change their format on the way."""

    def __init__(self, max_seconds: float) -> None:
        self._max_seconds = max_seconds
        self._format: tuple[str, str, int] | None = None
        self._resampler: AudioResampler | None = None
        self._pieces: list[Samples] = []  # mono
        self._count = 0
        self._channel: list[Samples] = []  # the first channel, in case the channels cancel each other out

    def add(self, frame: AudioFrame) -> None:
        """Add a frame. Raises LabError if the sound is longer than the limit."""
        import av

        if frame.rate <= 0:
            return
        current = (frame.format.name, frame.layout.name, frame.rate)
        if current != self._format:
            self._flush()
            self._format = current
            # Channels are mixed here and not by FFmpeg.
            self._resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=SAMPLE_RATE)
        assert self._resampler is not None
        frame.pts = None  # time stamps of a damaged or joined file can jump
        for piece in self._resampler.resample(frame):
            self._take(piece)

    def finish(self) -> Samples:
        """The samples of all frames: the mean of the channels, or one channel if the channels cancel each other."""
        self._flush()
        mixed = join(self._pieces)
        first = join(self._channel)
        if mixed.size and np.abs(mixed).max() < CANCELLED * np.abs(first).max():
            return first
        return mixed

    def _flush(self) -> None:
        if self._resampler is not None:
            for piece in self._resampler.resample(None):
                self._take(piece)

    def _take(self, piece: AudioFrame) -> None:
        # A file of floating-point samples may hold NaN or infinity. Both count as silence.
        channels = np.nan_to_num(piece.to_ndarray(), nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
        self._pieces.append(channels.mean(0, dtype=np.float32))
        self._channel.append(channels[0].astype(np.float32))
        self._count += channels.shape[1]
        if self._count > self._max_seconds * SAMPLE_RATE:
            raise too_long(0, self._max_seconds)


def join(pieces: list[Samples]) -> Samples:
    """Pieces of sound one after the other."""
    return np.concatenate([np.zeros(0, np.float32), *pieces])


def stated_seconds(container: InputContainer, stream: AudioStream) -> float:
    """Return the duration that the header states, in seconds; 0 if it states none or an impossible one."""
    if not stream.duration or not stream.time_base:
        return 0.0
    seconds = float(stream.duration * stream.time_base)
    return seconds if seconds * MIN_BYTES_PER_SECOND <= max(container.size, 1) else 0.0


def too_long(seconds: float, max_seconds: float) -> LabError:
    """Return the error for a recording longer than `max_seconds`; `seconds` is its stated duration, 0 if unknown."""
    lasts = f"lasts {seconds / 60:.0f} minutes" if seconds > max_seconds else "is too long"
    return LabError(f"This recording {lasts}. The limit is {max_seconds / 60:.0f} minutes: send a shorter one.")
