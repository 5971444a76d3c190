"""Recordings of every kind become the same sound, and what is wrong with one is said in one sentence."""

from __future__ import annotations

import wave
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import assert_refused, command, needs_espeak
from whisper.model import ModelDimensions, Whisper

from inference.errors import LabError
from inference.speech import RATE, Heard, Listener, decode
from training.nano.utterances import HELD_OUT_SPEAKERS, Utterance, Voice, synthesize

QUESTION = "Which emoji shows a panda?"
pytestmark = [pytest.mark.xdist_group("speech")]


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """A question in a voice that training never had, at 16 kHz."""
    return synthesize(Utterance(QUESTION, Voice("en-us", HELD_OUT_SPEAKERS[0], 150, 50)))


def heard(listener: Listener, source: str | Path | bytes) -> Heard:
    """What the last step says."""
    *_, last = listener.listen(source)
    return last


def write(path: Path, sound: np.ndarray, rate: int, codec: str, sample_format: str, layout: str = "mono") -> Path:
    """`sound` (16 kHz) as a file of any kind, by PyAV."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.format = sample_format
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        resampler = av.AudioResampler(sample_format, layout, rate, frame_size=stream.codec_context.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """int16 mono at 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return path


@needs_espeak
@pytest.mark.parametrize(
    ("name", "rate", "codec", "sample_format", "layout"),
    [
        ("a.wav", 16_000, "pcm_s16le", "s16", "mono"),
        ("a.wav", 48_000, "pcm_s32le", "s32", "stereo"),
        ("a.wav", 44_100, "pcm_f32le", "flt", "stereo"),
        ("a.wav", 96_000, "pcm_s16le", "s16", "mono"),
        ("a.wav", 8_000, "pcm_s16le", "s16", "mono"),
        ("a.webm", 48_000, "libopus", "flt", "mono"),
        ("a.ogg", 48_000, "libopus", "flt", "stereo"),
        ("a.mp4", 44_100, "aac", "fltp", "stereo"),
        ("a.mp3", 44_100, "libmp3lame", "fltp", "stereo"),
        ("a.flac", 22_050, "flac", "s16", "mono"),
    ],
)
def test_every_kind_of_recording_is_the_same_sound(spoken, tmp_path, name, rate, codec, sample_format, layout):
    sound = decode(write(tmp_path / name, spoken, rate, codec, sample_format, layout))
    assert sound.dtype == np.float32 and abs(sound.size - spoken.size) < 0.2 * RATE
    # A codec may add some silence before: compare where they fit best.
    length = 2 * max(sound.size, spoken.size)
    spectra = np.fft.rfft(sound, length) * np.fft.rfft(spoken, length).conj()
    likeness = np.fft.irfft(spectra).max() / (np.linalg.norm(sound) * np.linalg.norm(spoken))
    assert likeness > 0.9


def test_bad_recordings_get_one_sentence(spoken, tmp_path):
    def refused(name: str, data: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LabError, match=match):
            decode(tmp_path / name)

    good = write_wav(tmp_path / "good.wav", spoken).read_bytes()
    refused("empty.wav", b"", "no recording that can be read")
    refused("header.wav", good[:44], "recording")
    refused("one.wav", good[:46], "is empty")
    refused("text.wav", b"This is a text, not a sound.\n" * 50, "no recording that can be read")
    mp3 = write(tmp_path / "a.mp3", spoken, 44_100, "libmp3lame", "fltp").read_bytes()
    (tmp_path / "half.mp3").write_bytes(mp3[: len(mp3) // 2])
    assert decode(tmp_path / "half.mp3").size > spoken.size / 3
    lies = bytearray(good)
    lies[40:44] = (0xFFFFFFF0).to_bytes(4, "little")  # 2^31 samples of two bytes
    (tmp_path / "lies.wav").write_bytes(lies)
    assert decode(tmp_path / "lies.wav").size == spoken.size


def test_infinite_samples_and_those_that_are_no_number_count_as_silence(tmp_path):
    sound = np.full(RATE, np.nan, np.float32)
    sound[::2] = np.inf
    path = tmp_path / "a.wav"
    write(path, np.zeros(RATE), RATE, "pcm_f32le", "flt")
    data = path.read_bytes()
    start = data.index(b"data") + 8
    path.write_bytes(data[:start] + sound.tobytes()[: len(data) - start])
    assert np.abs(decode(path)).max() == 0


def test_four_hours_are_refused_before_they_are_decoded(tmp_path):
    path = write_wav(tmp_path / "long.wav", np.zeros(RATE))
    size = 4 * 3600 * RATE * 2
    with path.open("r+b") as file:
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)  # sparse: it takes no room
    with pytest.raises(LabError, match="lasts 240 minutes, and at most 5"):
        decode(path)


def test_a_video_without_sound_is_refused(tmp_path):
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(LabError, match="no sound in it"):
        decode(path)


@pytest.mark.parametrize("spoil", ["cut", "other", "not numbers"])
def test_a_broken_checkpoint_is_named(tmp_path, spoken, spoil):
    path = tmp_path / "ears.pt"
    if spoil == "cut":
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": {"weight": torch.zeros(9000)}}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif spoil == "not numbers":
        dims = ModelDimensions(80, 1500, 64, 2, 1, 51864, 128, 64, 2, 1)
        weights = {name: torch.full_like(value, torch.nan) for name, value in Whisper(dims).state_dict().items()}
        torch.save({"dims": asdict(dims), "model_state_dict": weights}, path)
    else:
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, path)
    with pytest.raises(LabError, match="ears.pt is not a Whisper checkpoint"):
        heard(Listener(str(path)), write_wav(tmp_path / "a.wav", spoken))


def test_an_unknown_model_and_a_full_disk_are_named(tmp_path, spoken, monkeypatch):
    with pytest.raises(LabError, match="no speech model bsae: set WHISPER_MODEL"):
        heard(Listener("bsae"), write_wav(tmp_path / "a.wav", spoken))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisper.load_model", full)
    with pytest.raises(LabError, match="can't be saved .No space left on device.: make room"):
        heard(Listener("base"), tmp_path / "a.wav")


def test_without_a_network_the_terminal_says_so(tmp_path, spoken):
    path = write_wav(tmp_path / "a.wav", spoken)
    done = command("inference", "transcribe", str(path), XDG_CACHE_HOME=str(tmp_path))
    assert_refused(done, "Whisper base can't be downloaded", "set WHISPER_MODEL to a file")
    assert_refused(command("inference", "transcribe", str(tmp_path / "none.wav")), "none.wav", "check the path")


def test_silence_is_nothing_heard(tmp_path):
    with pytest.raises(LabError, match="I heard nothing"):
        heard(Listener("base"), write_wav(tmp_path / "a.wav", np.zeros(RATE)))
