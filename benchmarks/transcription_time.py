"""How long from a recording to its transcript?

About 3, 10 and 60 s of speech by the voice that reads answers aloud. openai-whisper is its own `transcribe`, with the
language detected and given. Ours is what the speech process does after it has received the recording. In turns, in one
process, with the same weights, each way once before it counts. `WHISPER_MODEL` names the checkpoint; the embedded model
takes its place if it is not on this disk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jiwer
import numpy as np
import torch
import whisper
from whisper.normalizers import EnglishTextNormalizer

from benchmarks.report import Figure, timed
from inference.settings import Settings
from inference.speech import decode
from inference.speech.audio import SAMPLE_RATE, Samples
from inference.speech.whisper_model import EMBEDDED, WHISPER_CACHE, embedded_whisper, load_whisper
from inference.speech.windows import transcribe_samples
from inference.voice import Voice, wav_bytes

SECONDS = (3, 10, 60)
TEXT = """
Which emoji would you use for a panda that eats bamboo? I would like to send it to my sister, who works at the zoo in
Vienna. She has looked after the pandas there for seven years. Every morning she weighs them, and writes the numbers
into a small green book. Last winter one of them was ill, and refused to eat for three days. The doctor found nothing,
but my sister noticed that the bamboo came from another farm. They ordered the old kind again, and on the same evening
the panda ate two whole baskets. Since then there is a note on the kitchen door, which says that nobody may change the
supplier without asking her first. Visitors often want to know how much a panda eats in a day. The answer is between
twelve and thirty eight kilograms, depending on the season and on the part of the plant. Young shoots are full of
water, so they have to eat more of them. In autumn they prefer the leaves. They spend about fourteen hours a day on
their meals, and sleep for most of the rest.
"""


def speech(seconds: float) -> bytes:
    """The sentences of `TEXT` that last about that long, as a WAV file."""
    voice, parts, length, rate = Voice(), [], 0.0, 0
    for sentence in voice.sentences(" ".join(TEXT.split())):
        if length >= 0.9 * seconds:
            break
        rate, sound = voice.say(sentence)
        parts.append(sound)
        length += sound.size / rate
    return wav_bytes(rate, np.concatenate(parts))


def checkpoint() -> tuple[str, whisper.Whisper]:
    """The name of the model and the model: WHISPER_MODEL's if it is on this disk, else the embedded one."""
    name = Settings.from_environment().whisper
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if Path(name).is_file() or (WHISPER_CACHE / f"{name}.pt").is_file():
        return Path(name).stem, load_whisper(name, device)
    return EMBEDDED.parent.name, embedded_whisper().to(device)


def transcribers(model: whisper.Whisper, recording: bytes) -> dict[str, Callable[[], str]]:
    """The functions that are timed, by name; each returns the text."""
    sound: Samples = decode(recording).samples
    half = model.device.type == "cuda"

    def plain(language: str | None) -> str:
        text: str = whisper.transcribe(model, sound, language=language, fp16=half)["text"]
        return text

    def ours(language: str | None) -> str:
        *_, (text, _) = transcribe_samples(model, decode(recording).samples, language)
        return text

    return {
        "openai-whisper": lambda: plain(None),
        "openai-whisper, language given": lambda: plain("en"),
        "ours": lambda: ours(None),
        "ours, language given": lambda: ours("en"),
    }


def first_words(model: whisper.Whisper, recording: bytes) -> float:
    """Seconds from a recording to its first words."""
    started = time.perf_counter()
    next(transcribe_samples(model, decode(recording).samples, "en"))
    return time.perf_counter() - started


def recording_figures(name: str, model: whisper.Whisper, recording: bytes, rounds: int) -> list[Figure]:
    """The figures of one recording."""
    seconds: dict[str, list[float]] = {}
    texts: dict[str, str] = {}
    for _ in range(rounds + 1):  # the first one warms up
        for way, transcribe in transcribers(model, recording).items():
            with timed() as watch:
                texts[way] = transcribe()
            seconds.setdefault(way, []).append(watch.seconds)
    medians = {way: median(values[1:]) for way, values in seconds.items()}
    normalize = EnglishTextNormalizer()
    plain, own = (normalize(texts[way]) for way in ("openai-whisper, language given", "ours, language given"))
    length = decode(recording).samples.size / SAMPLE_RATE
    title = f"Whisper {name}, {length:.1f} s of speech"
    figures = [Figure(f"{title}, s: {'; '.join(medians)}", "; ".join(f"{value:.2f}" for value in medians.values()))]
    # The embedded model knows short questions about emoji alone: it transcribes this text wrongly.
    expected = "" if name == EMBEDDED.parent.name else "≤ 0.6"
    ratio = medians["ours, language given"] / medians["openai-whisper, language given"]
    figures.append(Figure(f"{title}: ours / openai-whisper, language given", f"{ratio:.2f}", expected))
    figures.append(Figure(f"{title}: words that differ", f"{jiwer.wer(plain or '-', own or '-'):.1%}"))
    if length > 30:
        first = median(first_words(model, recording) for _ in range(rounds))
        figures.append(Figure(f"{title}, s to our first words", f"{first:.2f}"))
    return figures


def measure(quick: bool) -> list[Figure]:
    """Measure the three lengths, or with `quick` the shortest alone."""
    name, model = checkpoint()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    figures = [Figure("device; load average before", f"{device}; {os.getloadavg()[0]:.1f}")]
    for seconds in SECONDS[: 1 if quick else None]:
        figures += recording_figures(name, model, speech(seconds), 1 if quick else 3 if seconds > 30 else 5)
    return figures
