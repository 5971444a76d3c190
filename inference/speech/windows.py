"""Transcribe samples with a Whisper model, in windows that are cut at pauses.

Whisper's encoder reads 30 s and fills a shorter recording up with silence, which costs most of the time of a question
of 3 s. Here it reads the sound and `MARGIN` seconds; a window whose text is unsure is read again with all 30 s. Windows
of a long recording are read several at once, each without the text of the one before: with it, Whisper begins to repeat
itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from inference.errors import LabError
from inference.speech.audio import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    import torch
    import whisper

WINDOW = 30  # seconds that Whisper's encoder reads at most
MARGIN = 4.0  # seconds of silence after the sound; docs/log.md has the errors with others
PART, SHIFT = 24, 3  # seconds: parts of a long recording are about that long; their ends move to a pause by up to SHIFT
AT_ONCE = 6  # windows in a batch
POSITIONS_PER_SECOND = 50  # of the encoder's output
TEMPERATURES = (0.0, 0.4, 0.8)  # greedy first; higher ones if the text repeats itself or is unlikely
# Whisper's own thresholds (transcribe.py) for a text that it does not trust, and for a window without speech.
COMPRESSION_RATIO = 2.4
LOG_PROBABILITY = -1.0
NO_SPEECH = 0.6
SURE = -0.5  # below this mean log-probability, a short window is read again
LANGUAGE_PROBABILITY = 0.5  # below this, the language is detected again
# Speech has about 4; a text that repeats itself ends here and is read again.
TOKENS_PER_SECOND = 10
# Above this, "no speech" wins over a confident text: Whisper invents "Thank you." with high confidence.
CERTAINLY_NO_SPEECH = 0.9


def transcribe_samples(model: whisper.Whisper, audio: Samples, language: str | None) -> Iterator[tuple[str, str]]:
    """Yield the text so far and the language of 16 kHz samples, shape (samples,), after each batch of windows; the last
    text is the whole one. It is "" if nobody speaks.

    `language` is a code such as "en"; None detects it in the first window.
    """
    from whisper.tokenizer import LANGUAGES

    if language is not None and language not in LANGUAGES:
        raise LabError(f"Whisper does not know the language “{language}”: use a code such as “en”, or leave it out.")
    texts: list[str] = []
    for windows in batches(split(audio)):
        found, language = transcribe_windows(model, windows, language)
        texts += filter(None, found)
        yield " ".join(texts), language


def split(audio: Samples) -> list[Samples]:
    """Windows of at most 30 s, in order. A longer recording is cut at the quietest moment near each end of equal parts
    of at most `PART` seconds."""
    if audio.size <= WINDOW * SAMPLE_RATE:
        return [audio]
    count = math.ceil(audio.size / (PART * SAMPLE_RATE))
    step = SAMPLE_RATE // 10
    power = np.square(audio[: audio.size // step * step]).reshape(-1, step).mean(1)
    calm = np.convolve(power, np.ones(3), "same")
    cuts = []
    for number in range(1, count):
        first = (audio.size * number // count - SHIFT * SAMPLE_RATE) // step
        last = first + 2 * SHIFT * SAMPLE_RATE // step
        cuts.append((first + int(calm[first:last].argmin())) * step + step // 2)
    return np.split(audio, cuts)


def batches(windows: list[Samples]) -> Iterator[list[Samples]]:
    """The first window alone, so that its words come early; then `AT_ONCE` at a time."""
    yield windows[:1]
    for start in range(1, len(windows), AT_ONCE):
        yield windows[start : start + AT_ONCE]


def transcribe_windows(model: whisper.Whisper, windows: list[Samples], language: str | None) -> tuple[list[str], str]:
    """The text of each window, and the language. A window without speech has the text ""."""
    import torch

    with torch.inference_mode():
        features = encode(model, windows, MARGIN)
        if language is None:
            language = detect_language(model, windows[0], features[:1])
        limit = min(features.shape[1] * TOKENS_PER_SECOND // POSITIONS_PER_SECOND, model.dims.n_text_ctx // 2)
        results = decode(model, features, language, limit=limit)
        texts = [
            result.text if is_sure(result, limit) else read_again(model, window, language)
            for window, result in zip(windows, results, strict=True)
        ]
    return [text.strip() for text in texts], language


def read_again(model: whisper.Whisper, window: Samples, language: str) -> str:
    """The text of a window that the encoder reads with all 30 s, as `whisper.transcribe` does."""
    features = encode(model, [window], WINDOW)
    for temperature in TEMPERATURES:
        (result,) = decode(model, features, language, temperature)
        if is_silent(result):
            break
        if is_likely(result):
            return result.text
    return ""


def encode(model: whisper.Whisper, windows: list[Samples], margin: float) -> torch.Tensor:
    """The encoder's output for the sound and a margin in seconds, shape (windows, positions, state); at most 30 s."""
    import torch
    import whisper

    seconds = max(window.size for window in windows) / SAMPLE_RATE + margin
    positions = min(math.ceil(seconds * POSITIONS_PER_SECOND), model.dims.n_audio_ctx)
    mels = []
    for window in windows:
        # Each frame is computed as if silence followed. As in `whisper.transcribe`, the frames after the sound are 0.
        mel = whisper.log_mel_spectrogram(window, model.dims.n_mels, padding=whisper.audio.N_FFT)
        mel = mel[:, : math.ceil(window.size / whisper.audio.HOP_LENGTH)]
        mels.append(whisper.pad_or_trim(mel, whisper.audio.N_FRAMES * positions // model.dims.n_audio_ctx))
    dtype = torch.float16 if half(model) else torch.float32
    with shortened(model, positions):
        weights = model.encoder.conv1.weight
        encoded: torch.Tensor = model.encoder(
            torch.stack(mels).to(model.device, dtype if half(model) else weights.dtype)
        )
    return encoded.to(dtype)


@contextmanager
def shortened(model: whisper.Whisper, positions: int) -> Iterator[None]:
    """Let the model read that many positions. Its own code checks the length against `n_audio_ctx`."""
    table, length = model.encoder.positional_embedding, model.dims.n_audio_ctx
    model.encoder.positional_embedding, model.dims.n_audio_ctx = table[:positions], positions
    try:
        yield
    finally:
        model.encoder.positional_embedding, model.dims.n_audio_ctx = table, length


def detect_language(model: whisper.Whisper, window: Samples, features: torch.Tensor) -> str:
    """The most likely language of a window and its encoder output, shape (1, positions, state)."""
    if not model.is_multilingual:
        return "en"
    language, probability = likely_language(model, features)
    if probability < LANGUAGE_PROBABILITY:
        language, _ = likely_language(model, encode(model, [window], WINDOW))
    return language


def likely_language(model: whisper.Whisper, features: torch.Tensor) -> tuple[str, float]:
    """The most likely language of encoded sound, shape (1, positions, state), and its probability."""
    import whisper

    with shortened(model, features.shape[1]):
        (probabilities,) = whisper.detect_language(model, features)[1]
    language = max(probabilities, key=probabilities.__getitem__)
    return language, probabilities[language]


def decode(
    model: whisper.Whisper, features: torch.Tensor, language: str, temperature: float = 0.0, limit: int | None = None
) -> list[whisper.DecodingResult]:
    """Decode encoded sound, shape (windows, positions, state), into at most `limit` tokens."""
    import whisper

    options = whisper.DecodingOptions(
        language=language, temperature=temperature, without_timestamps=True, fp16=half(model), sample_len=limit
    )
    with shortened(model, features.shape[1]):
        results: list[whisper.DecodingResult] = whisper.decode(model, features, options)
    return results


def half(model: whisper.Whisper) -> bool:
    """Whether the model computes in float16."""
    return model.device.type == "cuda"


def is_likely(result: whisper.DecodingResult) -> bool:
    """Return whether Whisper's own rules trust the text: it does not repeat itself and is not improbable."""
    return result.compression_ratio <= COMPRESSION_RATIO and result.avg_logprob >= LOG_PROBABILITY


def is_silent(result: whisper.DecodingResult) -> bool:
    """Return whether a window has no speech: by Whisper's own rule, or because "no speech" is almost certain."""
    silence = result.no_speech_prob
    return silence > CERTAINLY_NO_SPEECH or (silence > NO_SPEECH and result.avg_logprob < LOG_PROBABILITY)


def is_sure(result: whisper.DecodingResult, limit: int) -> bool:
    """Return whether the text of a short window, decoded into at most `limit` tokens, needs no second reading."""
    likely = is_likely(result) and result.avg_logprob >= SURE
    return likely and len(result.tokens) < limit and not is_silent(result)
