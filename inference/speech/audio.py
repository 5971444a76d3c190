"""Decode a recording of any format into mono samples at 16 kHz, with PyAV (FFmpeg's libraries) and bounded memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from inference.errors import LabError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz, the rate that Whisper expects
MAX_SECONDS = 300.0
MIN_SECONDS = 0.01
MIN_BYTES_PER_SECOND = 32  # no codec needs less, so a header that implies less is wrong

Samples = npt.NDArray[np.float32]


def decode(source: str | Path | bytes | BinaryIO, max_seconds: float = MAX_SECONDS) -> Samples:
    """Decode a recording: float32 samples in [-1, 1], mono, 16 kHz, shape (samples,).

    Accepts every container and codec that FFmpeg knows. Of a file that is damaged in the middle, returns the part
    before the damage.

    Raises:
        LabError: the file is not a recording, has no sound, or lasts longer than `max_seconds`. Decoding stops at
            that limit.
    """
    import av

    opened = io.BytesIO(source) if isinstance(source, bytes) else str(source) if isinstance(source, Path) else source
    pieces: list[Samples] = []
    damaged = False
    try:
        with av.open(opened, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise LabError("This recording has no sound: record again, or choose another file.")
            stream = container.streams.audio[0]
            stated = stated_seconds(container, stream)
            if stated > max_seconds:
                raise too_long(stated, max_seconds)
            samples = 0
            try:
                for piece in resampled(container, stream):
                    pieces.append(piece)
                    samples += piece.size
                    if samples > max_seconds * SAMPLE_RATE:
                        raise too_long(stated, max_seconds)
            except av.error.FFmpegError:
                damaged = True
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise LabError("This file is not a readable recording: record again, or choose an audio file.") from error
    audio = np.concatenate([np.zeros(0, np.float32), *pieces])
    if audio.size < MIN_SECONDS * SAMPLE_RATE:
        reason = "is damaged from its start" if damaged else "is empty"
        raise LabError(f"This recording {reason}: record again, or choose another file.")
    # A file of floating-point samples may hold NaN or infinity. Both count as silence.
    return np.nan_to_num(audio, nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1).astype(np.float32)


def resampled(container: InputContainer, stream: AudioStream) -> Iterator[Samples]:
    """Yield the samples of a stream, mono at `SAMPLE_RATE`, piece by piece."""
    import av

    resampler = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    for frame in container.decode(stream):
        for piece in resampler.resample(frame):
            yield piece.to_ndarray()[0]
    for piece in resampler.resample(None):
        yield piece.to_ndarray()[0]


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
