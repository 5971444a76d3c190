"""Audio of any kind in, text out: PyAV decodes and resamples, Whisper (Radford et al. 2022) listens.

`decode` turns what a browser or a phone recorded into mono float32 at 16 kHz, with bounded memory; `Listener` holds one
Whisper model, loaded at the first recording. A recording of at most 30 s is one window, which is encoded once, whatever
language detection and retries do with it; a longer one goes through Whisper's own windowing. Where the model named in
the environment can't be had, the embedded speech model answers and says so.

Speech is English or what WHISPER_MODEL knows; who spoke, translation and time stamps are not done here.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.error import URLError

import numpy as np

from inference.errors import LabError
from inference.settings import PROJECT, cache_folder, zero_gpu

if TYPE_CHECKING:
    import whisper

RATE = 16_000  # Hz: what Whisper hears
WINDOW = 30  # seconds: what Whisper's encoder sees at once
MAX_SECONDS = 300
EMBEDDED = PROJECT / "adapters" / "nano-speech" / "model.safetensors"
EMBEDDED_NOTE = "Offline speech model: short English questions about emoji, synthetic voices."
NOTHING_HEARD = "I heard nothing. Speak a little louder or nearer, and check that the right microphone is selected."
TEMPERATURES = (0.0, 0.4, 0.8)  # greedy first; hotter ones where the text repeats itself or is unlikely
# Whisper's own thresholds (transcribe.py) for a text that can't be trusted, and for a window without speech.
COMPRESSION_RATIO = 2.4
LOG_PROBABILITY = -1.0
NO_SPEECH = 0.6
# Above this, "no speech" is believed against a confident text: the invented "Thank you." is a confident one.
SURELY_NO_SPEECH = 0.9
SILENCE = 10 ** (-60 / 20)  # a peak below -60 dB of full scale is no voice at any distance


@dataclass(frozen=True)
class Transcript:
    """What was heard. `duration` (s) is the recording's, `seconds` what listening took; `note` is about the model."""

    text: str
    language: str
    duration: float
    seconds: float
    model: str
    note: str = ""


@dataclass(frozen=True)
class TranscriptionProgress:
    """A step on the way: what is being waited for."""

    waiting: str


def decode(source: str | Path | bytes | BinaryIO, max_seconds: float = MAX_SECONDS) -> np.ndarray:
    """The sound of a file as mono float32 samples at 16 kHz in [-1, 1], shape (samples,).

    Takes any container and codec that FFmpeg's libraries know. Raises LabError where there is no sound, or more than
    `max_seconds` of it; no more than that is ever decoded.
    """
    import av

    if isinstance(source, bytes):
        source = io.BytesIO(source)
    pieces, samples, broken = [], 0, None
    try:
        with av.open(source if not isinstance(source, Path) else str(source), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise LabError("This recording has no sound in it: record again, or choose another file.")
            stream = container.streams.audio[0]
            stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
            plausible = stated * 32 <= max(container.size, 1)  # under 32 bytes a second the header lies
            if stated > max_seconds and plausible:
                raise too_long(stated, max_seconds)
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
            try:
                for frame in container.decode(stream):
                    for piece in resampler.resample(frame):
                        pieces.append(piece.to_ndarray()[0])
                        samples += pieces[-1].size
                    if samples > max_seconds * RATE:
                        raise too_long(stated if plausible else 0.0, max_seconds)
                pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
            except av.error.FFmpegError as error:
                broken = error  # what came before the break is still worth hearing
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise LabError("This is no recording that can be read: record again, or choose an audio file.") from error
    audio = np.concatenate([np.zeros(0, np.float32), *pieces])
    if audio.size < RATE // 100:
        why = "is broken from its start" if broken else "is empty"
        raise LabError(f"This recording {why}: record again, or choose another file.")
    if not np.isfinite(audio).all():
        audio = np.nan_to_num(audio, nan=0.0, posinf=0.0, neginf=0.0)
    return audio.clip(-1, 1).astype(np.float32)


def too_long(seconds: float, max_seconds: float) -> LabError:
    """The refusal of a long recording."""
    lasts = f"lasts {seconds / 60:.0f} minutes" if seconds > max_seconds else "is too long"
    return LabError(f"This recording {lasts}, and at most {max_seconds / 60:.0f} can be heard: send a shorter one.")


def embedded_checkpoint() -> Path:
    """The embedded model as a file that `whisper.load_model` reads; built once, in the cache.

    Only the rows of tokens in use are shipped. All others get a first component that makes them impossible: it is a
    bias, since the decoder's last layer norm gives 1 there (see `training/nano/speech.py`).
    """
    import torch
    from safetensors import safe_open
    from whisper.model import sinusoids

    if not EMBEDDED.is_file():
        raise LabError("The embedded speech model is missing: make it with `python -m training.nano.speech`.")
    digest = hashlib.sha256(EMBEDDED.read_bytes()).hexdigest()[:16]
    target = cache_folder() / f"speech-{digest}.pt"
    if target.is_file():
        return target
    with safe_open(EMBEDDED, framework="pt") as packed:
        weights = {name: packed.get_tensor(name) for name in packed.keys()}  # noqa: SIM118 (not a dict)
        dims = json.loads(packed.metadata()["dims"])
    tokens, rows = weights.pop("tokens"), weights.pop("rows")
    table = torch.zeros(dims["n_vocab"], dims["n_text_state"], dtype=rows.dtype)
    table[:, 0] = -60.0
    table[tokens.long()] = rows
    weights["decoder.token_embedding.weight"] = table
    weights["encoder.positional_embedding"] = sinusoids(dims["n_audio_ctx"], dims["n_audio_state"])
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    torch.save({"dims": dims, "model_state_dict": weights}, part)
    part.replace(target)
    return target


class Transcriber:
    """One Whisper model and its loading. `name` is one of Whisper's own or a checkpoint's path.

    Recordings are heard one at a time: Whisper uses every core as it is.
    """

    def __init__(self, name: str = "base", max_seconds: float = MAX_SECONDS) -> None:
        self.name = name
        self.max_seconds = max_seconds
        self.note = ""  # what to know of the model that listens; set when it is loaded
        self.listens = name  # the name, or "nano-speech" where that had to do
        self._model: whisper.Whisper | None = None
        self._lock = threading.Lock()

    def transcribe(
        self, source: str | Path | bytes, language: str | None = None
    ) -> Iterator[TranscriptionProgress | Transcript]:
        """Steps, then what was heard. `language` as in "en"; None detects it. Raises LabError, also for silence."""
        started = time.perf_counter()
        audio = decode(source, self.max_seconds)
        duration = audio.size / RATE
        if np.abs(audio).max() < SILENCE:
            raise LabError(NOTHING_HEARD)
        yield from self.load()
        yield TranscriptionProgress("listening")
        with self._lock:
            transcript = transcribe_window if duration <= WINDOW else transcribe_windows
            text, spoken = transcript(self._load(), audio, language)
        if not text:
            raise LabError(NOTHING_HEARD)
        yield Transcript(
            text, spoken, round(duration, 2), round(time.perf_counter() - started, 3), self.listens, self.note
        )

    def load(self) -> Iterator[TranscriptionProgress]:
        """Load the model, if it isn't there; tells how far it is. A page does so while its visitor speaks."""
        loading: Future[whisper.Whisper] = Future()

        def work() -> None:
            try:
                loading.set_result(self._load())
            except Exception as error:
                loading.set_exception(error)

        if self._model is None:
            threading.Thread(target=work, daemon=True).start()  # a daemon: it must not keep the process from ending
            while not loading.done():
                yield TranscriptionProgress(download_progress(self.name) or "loading the speech model")
                wait([loading], timeout=0.25)
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
                    self.listens = EMBEDDED.parent.name
                    self.note = f"{EMBEDDED_NOTE} {error}"
            return self._model


_LOADING = threading.Lock()  # two recordings at once share one download


def load_whisper(name: str) -> whisper.Whisper:
    """A Whisper model by its name or its checkpoint's path: fp16 on a GPU, fp32 on a CPU."""
    import whisper

    known = whisper.available_models()
    if name not in known and not Path(name).is_file():
        raise LabError(f"There is no speech model {name}: set WHISPER_MODEL to a file or one of {', '.join(known)}.")
    try:
        model = whisper.load_model(name, "cpu" if zero_gpu() else None).eval()
    except URLError as error:
        why = getattr(error.reason, "strerror", None) or error.reason
        raise LabError(
            f"Whisper {name} can't be downloaded ({why}): check the network, or set WHISPER_MODEL to a file."
        ) from error
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and name in known:
            why = error.strerror or error
            raise LabError(f"Whisper {name} can't be saved ({why}): make room on the disk.") from error
        raise broken_checkpoint(name) from error
    if not all(weights.isfinite().all() for weights in model.parameters()):
        raise broken_checkpoint(name)
    return model


def broken_checkpoint(name: str) -> LabError:
    """The refusal of a file that holds no usable Whisper."""
    return LabError(f"{Path(name).name} is not a Whisper checkpoint, or a broken one: delete it or name another.")


def download_progress(name: str) -> str | None:
    """ "downloading 31 MB of the speech model" while Whisper's own download of `name` grows on the disk."""
    import whisper

    url = whisper._MODELS.get(name)
    if url is None:
        return None
    default = Path("~/.cache").expanduser()
    file = Path(os.environ.get("XDG_CACHE_HOME") or default) / "whisper" / url.rsplit("/", 1)[-1]
    return f"downloading the speech model, {file.stat().st_size / 1e6:.0f} MB so far" if file.is_file() else None


def transcribe_window(model: whisper.Whisper, audio: np.ndarray, language: str | None) -> tuple[str, str]:
    """The text and language of at most 30 s, both from one pass of the encoder; "" where nobody speaks.

    What `whisper.transcribe` does with one window, less its second encoding for the language and one for each retry.
    """
    import torch
    import whisper

    mel = whisper.log_mel_spectrogram(audio, model.dims.n_mels, padding=whisper.audio.N_SAMPLES)
    mel = whisper.pad_or_trim(mel[:, : math.ceil(audio.size / whisper.audio.HOP_LENGTH)], whisper.audio.N_FRAMES)
    half = model.device.type == "cuda"
    with torch.inference_mode():
        features = model.encoder(mel[None].to(model.device, torch.float16 if half else torch.float32))
        if not model.is_multilingual:
            language = "en"
        elif language is None:
            language = whisper.detect_language(model, features)[1][0]
            language = max(language, key=language.get) if isinstance(language, dict) else language
        options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=half)
        for temperature in TEMPERATURES:
            result = whisper.decode(model, features, replace(options, temperature=temperature))[0]
            if nobody_speaks(result.no_speech_prob, result.avg_logprob):
                return "", language
            if result.compression_ratio <= COMPRESSION_RATIO and result.avg_logprob >= LOG_PROBABILITY:
                return result.text.strip(), language
    return "", language


def transcribe_windows(model: whisper.Whisper, audio: np.ndarray, language: str | None) -> tuple[str, str]:
    """The text and language of a longer recording, by Whisper's own windowing.

    No window is told what the one before said: that is how Whisper begins to repeat itself.
    """
    result = model.transcribe(
        audio, language=language, temperature=TEMPERATURES, fp16=model.device.type == "cuda", verbose=None,
        compression_ratio_threshold=COMPRESSION_RATIO, logprob_threshold=LOG_PROBABILITY, no_speech_threshold=NO_SPEECH,
        condition_on_previous_text=False,
    )  # fmt: skip
    said = [s["text"] for s in result["segments"] if not nobody_speaks(s["no_speech_prob"], s["avg_logprob"])]
    return " ".join(text.strip() for text in said if text.strip()), result["language"]


def nobody_speaks(no_speech: float, log_probability: float) -> bool:
    """Whisper's own rule, and one of ours: a window that is surely without speech has no text, however likely."""
    return no_speech > SURELY_NO_SPEECH or (no_speech > NO_SPEECH and log_probability < LOG_PROBABILITY)
