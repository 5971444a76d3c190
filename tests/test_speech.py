"""Speech recognition: every format is transcribed, silence is reported, and each error is one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from conftest import RECORDINGS, assert_refused, command, write_wav
from whisper.model import ModelDimensions, Whisper

from inference.errors import LabError
from inference.speech import SAMPLE_RATE, Transcriber, Transcript, decode
from inference.speech.whisper_model import embedded_whisper, load_whisper
from inference.speech.windows import WINDOW, split, transcribe_samples

QUESTION = "Which emoji shows a panda?"
pytestmark = [pytest.mark.xdist_group("speech")]


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    """Whisper base cannot be downloaded, so the embedded model transcribes."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        transcriber = Transcriber("base")
        list(transcriber.load())
    return transcriber


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    """`QUESTION` in a voice that training never had, at 16 kHz."""
    return decode(RECORDINGS / "which_emoji.flac").samples


def transcribe(transcriber: Transcriber, source: str | Path | bytes) -> Transcript:
    """The last step: the transcript."""
    *_, last = transcriber.transcribe(source)
    return last


def write(path: Path, sound: np.ndarray, rate: int, codec: str, sample_format: str, layout: str = "mono") -> Path:
    """`sound` (16 kHz) as a file of any kind, by PyAV."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.format = sample_format
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
        resampler = av.AudioResampler(sample_format, layout, rate, frame_size=stream.codec_context.frame_size or None)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


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
def test_every_kind_of_recording_gives_the_same_text(
    transcriber, spoken, tmp_path, name, rate, codec, sample_format, layout
):
    path = write(tmp_path / name, spoken, rate, codec, sample_format, layout)
    assert transcribe(transcriber, path).text == QUESTION


def test_a_transcript_has_language_duration_time_and_a_note_about_the_model(transcriber, spoken, tmp_path):
    found = transcribe(transcriber, write_wav(tmp_path / "a.wav", spoken))
    assert (found.language, found.model) == ("en", "nano-speech") and found.seconds > 0
    assert found.duration == pytest.approx(spoken.size / SAMPLE_RATE, abs=0.01)
    assert found.note.startswith("Offline speech model") and "Whisper base could not be downloaded" in found.note


def test_a_long_recording_shows_its_first_words_before_its_end(transcriber, spoken, tmp_path):
    window = np.pad(spoken, (0, 18 * SAMPLE_RATE - spoken.size))
    window[spoken.size : -SAMPLE_RATE // 2 : 2] = 1e-4  # the quietest moment is the last one
    path = write_wav(tmp_path / "a.wav", np.tile(window, 3))
    *steps, found = transcriber.transcribe(path)
    words = [step.text for step in steps]
    assert found.text == " ".join([QUESTION] * 3)
    assert words[0] == "" and words[-1] == found.text
    assert any(text and text != found.text and found.text.startswith(text) for text in words)


def test_a_recording_is_cut_at_pauses():
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, 70 * SAMPLE_RATE).astype(np.float32)
    for pause in (23, 45):
        sound[pause * SAMPLE_RATE : (pause + 1) * SAMPLE_RATE] = 0
    windows = split(sound)
    assert np.array_equal(np.concatenate(windows), sound)
    assert [round(window.size / SAMPLE_RATE) for window in windows] in ([23, 22, 25], [24, 22, 24], [23, 23, 24])
    assert all(np.abs(window[-100:]).max() == 0 for window in windows[:-1])
    assert all(window.size <= WINDOW * SAMPLE_RATE for window in split(np.zeros(299 * SAMPLE_RATE, np.float32)))


def test_an_unsure_window_is_read_again_with_all_its_30_seconds(spoken, monkeypatch):
    model = embedded_whisper()
    lengths = []
    encoder = type(model.encoder).forward
    monkeypatch.setattr(type(model.encoder), "forward", lambda self, x: lengths.append(x.shape[-1]) or encoder(self, x))
    *_, (text, _) = transcribe_samples(model, spoken, "en")
    assert text == QUESTION and len(lengths) == 1 and lengths[0] < 700
    monkeypatch.setattr("inference.speech.windows.is_sure", lambda result, limit: False)
    *_, (text, _) = transcribe_samples(model, spoken, "en")
    assert text == QUESTION and lengths[1:] == [lengths[0], 3000]
    assert model.dims.n_audio_ctx == len(model.encoder.positional_embedding) == 1500


@pytest.mark.parametrize("kind", ["silence", "white noise", "hum of 50 Hz", "brown noise"])
def test_a_recording_without_speech_is_refused(transcriber, tmp_path, kind):
    rng, count = np.random.default_rng(3), SAMPLE_RATE * 4
    walk = np.cumsum(rng.normal(0, 1, count))
    sounds = {
        "silence": np.zeros(count),
        "white noise": rng.normal(0, 0.05, count),
        "hum of 50 Hz": 0.2 * np.sin(2 * np.pi * 50 * np.arange(count) / SAMPLE_RATE),
        "brown noise": 0.3 * walk / np.abs(walk).max(),
    }
    with pytest.raises(LabError, match="No speech was recognised"):
        transcribe(transcriber, write_wav(tmp_path / "a.wav", sounds[kind].clip(-1, 1)))


def test_a_bad_recording_gives_one_sentence_and_the_next_one_works(transcriber, spoken, tmp_path):
    def refused(name: str, data: bytes, match: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(LabError, match=match):
            transcribe(transcriber, tmp_path / name)

    good = write_wav(tmp_path / "good.wav", spoken).read_bytes()
    refused("empty.wav", b"", "not a readable recording")
    refused("header.wav", good[:44], "recording")
    refused("one.wav", good[:46], "is empty")
    refused("text.wav", b"This is a text, not a sound.\n" * 50, "not a readable recording")
    mp3 = write(tmp_path / "a.mp3", spoken, 44_100, "libmp3lame", "fltp").read_bytes()
    (tmp_path / "half.mp3").write_bytes(mp3[: len(mp3) // 2])
    assert decode(tmp_path / "half.mp3").samples.size > spoken.size / 3
    lies = bytearray(good)
    lies[40:44] = (0xFFFFFFF0).to_bytes(4, "little")  # 2^31 samples of two bytes
    (tmp_path / "lies.wav").write_bytes(lies)
    assert transcribe(transcriber, tmp_path / "lies.wav").text == QUESTION


def test_infinite_and_nan_samples_count_as_silence(tmp_path):
    sound = np.full(SAMPLE_RATE, np.nan, np.float32)
    sound[::2] = np.inf
    path = tmp_path / "a.wav"
    write(path, np.zeros(SAMPLE_RATE), SAMPLE_RATE, "pcm_f32le", "flt")
    data = path.read_bytes()
    start = data.index(b"data") + 8
    path.write_bytes(data[:start] + sound.tobytes()[: len(data) - start])
    assert np.abs(decode(path).samples).max() == 0


def test_a_recording_of_four_hours_is_refused_before_it_is_decoded(tmp_path):
    path = write_wav(tmp_path / "long.wav", np.zeros(SAMPLE_RATE))
    size = 4 * 3600 * SAMPLE_RATE * 2
    with path.open("r+b") as file:
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)  # a sparse file takes no disk space
    with pytest.raises(LabError, match="lasts 240 minutes. The limit is 5 minutes"):
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
    with pytest.raises(LabError, match="has no sound"):
        decode(path)


@pytest.mark.parametrize("spoil", ["cut", "other", "not numbers"])
def test_a_damaged_checkpoint_is_named_in_the_error(tmp_path, spoken, spoil):
    path = tmp_path / "model.pt"
    if spoil == "cut":
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": {"weight": torch.zeros(9000)}}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif spoil == "not numbers":
        dims = ModelDimensions(80, 1500, 64, 2, 1, 51864, 128, 64, 2, 1)
        weights = {name: torch.full_like(value, torch.nan) for name, value in Whisper(dims).state_dict().items()}
        torch.save({"dims": asdict(dims), "model_state_dict": weights}, path)
    else:
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": {}}, path)
    with pytest.raises(LabError, match="model.pt is damaged or not a Whisper checkpoint"):
        transcribe(Transcriber(str(path)), write_wav(tmp_path / "a.wav", spoken))


def test_an_unknown_model_and_a_full_disk_are_named_in_the_error(tmp_path, spoken, monkeypatch):
    with pytest.raises(LabError, match="no speech model bsae: set WHISPER_MODEL"):
        transcribe(Transcriber("bsae"), write_wav(tmp_path / "a.wav", spoken))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisper.load_model", full)
    with pytest.raises(LabError, match="could not be saved .No space left on device.: free some disk space"):
        load_whisper("base")


def test_the_error_names_the_network_if_no_model_is_available(tmp_path, spoken, monkeypatch):
    monkeypatch.setattr("inference.speech.transcriber.EMBEDDED", tmp_path / "none")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        LabError, match=r"Whisper base could not be downloaded \(.*\): check the network, or set WHISPER"
    ):
        transcribe(Transcriber("base"), write_wav(tmp_path / "a.wav", spoken))


def test_the_terminal_transcribes_and_asks_by_voice(tmp_path, spoken):
    path = str(write_wav(tmp_path / "a.wav", spoken))
    offline = {"https_proxy": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    record = json.loads(command("inference", "transcribe", path, "--json", **offline).stdout)
    assert record["text"] == QUESTION and record["language"] == "en"
    asked = command("inference", "ask", "nano-emoji", "--audio", path, "--temperature", "0", **offline)
    assert "🐼" in asked.stdout and f"transcript: {QUESTION}" in asked.stderr and "Offline speech model" in asked.stderr
    assert_refused(command("inference", "transcribe", str(tmp_path / "none.wav")), "none.wav", "check the path")


def test_damage_and_joined_files_and_opposite_channels_keep_the_words(transcriber, spoken, tmp_path):
    """A packet that cannot be decoded, a format that changes on the way, channels that cancel each other out."""
    m4a = bytearray(write(tmp_path / "a.m4a", np.tile(spoken, 2), 44_100, "aac", "fltp").read_bytes())
    middle = m4a.index(b"mdat") + len(m4a) // 2
    m4a[middle : middle + 40] = bytes(40)
    (tmp_path / "hole.m4a").write_bytes(m4a)
    found = transcribe(transcriber, tmp_path / "hole.m4a")
    assert found.duration > 1.8 * spoken.size / SAMPLE_RATE and QUESTION.split()[-1] in found.text

    half = write(tmp_path / "mono.mp3", spoken[: spoken.size // 2], 22_050, "libmp3lame", "fltp").read_bytes()
    rest = write(tmp_path / "stereo.mp3", spoken[spoken.size // 2 :], 44_100, "libmp3lame", "fltp", "stereo")
    (tmp_path / "joined.mp3").write_bytes(half + rest.read_bytes())
    assert decode(tmp_path / "joined.mp3").seconds == pytest.approx(spoken.size / SAMPLE_RATE, abs=0.3)

    with av.open(str(tmp_path / "antiphase.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="stereo")
        pair = (np.stack([spoken, -spoken], 1).reshape(1, -1) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pair, format="s16", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert transcribe(transcriber, tmp_path / "antiphase.wav").text == QUESTION


def test_a_language_may_carry_its_region_and_an_unknown_one_is_refused(transcriber, spoken, tmp_path):
    path = write_wav(tmp_path / "a.wav", spoken)
    *_, found = transcriber.transcribe(path, "en-US")
    assert found.text == QUESTION
    for language, match in (("xx", "does not know the language “xx”"), ("not a code!", "not a code")):
        with pytest.raises(LabError, match=match):
            list(transcriber.transcribe(path, language))
    assert transcribe(transcriber, path).text == QUESTION


def test_a_stopped_transcription_makes_way_for_the_next_one(transcriber, spoken, tmp_path):
    long = write_wav(tmp_path / "long.wav", np.tile(spoken, 40))
    steps: list = []
    for step in transcriber.transcribe(long, cancelled=lambda: any(step.text for step in steps)):
        steps.append(step)
    assert not any(isinstance(step, Transcript) for step in steps)
    assert transcribe(transcriber, write_wav(tmp_path / "a.wav", spoken)).text == QUESTION


def test_a_transcription_that_nobody_reads_on_leaves_nothing_to_the_next_one(transcriber, spoken, tmp_path):
    steps = transcriber.transcribe(write_wav(tmp_path / "long.wav", np.tile(spoken, 40)))
    while next(steps).text == "":
        pass
    steps.close()
    assert transcribe(transcriber, write_wav(tmp_path / "a.wav", spoken)).text == QUESTION


def test_a_speech_process_that_dies_is_one_sentence_and_the_next_recording_works(transcriber, spoken, tmp_path):
    path = write_wav(tmp_path / "a.wav", spoken)
    list(transcriber.load())
    steps = transcriber.transcribe(path)
    next(steps)
    transcriber._child.process.kill()
    with pytest.raises(LabError, match="Speech recognition crashed"):
        list(steps)
    assert transcribe(transcriber, path).text == QUESTION


def test_a_recording_stopped_before_its_turn_begins_leaves_the_turn_to_others(transcriber, spoken, tmp_path):
    path = write_wav(tmp_path / "a.wav", spoken)
    assert list(transcriber.transcribe(path, cancelled=lambda: True)) == []
    assert transcribe(transcriber, path).text == QUESTION
