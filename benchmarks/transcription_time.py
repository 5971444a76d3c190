"""How long from a recording to its transcript?

A question of 3 s on Whisper's tiny, base and small shapes with random weights, which compute as real ones do; ten
tokens are decoded, about as many as such a question has. Plain is `whisper.detect_language` and `whisper.decode`, each
of which encodes the 30 s window. Ours encodes once. In turns, in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

from benchmarks.report import Figure, timed

# As in the checkpoints' own dims: state, heads and layers of encoder and decoder alike.
SHAPES = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12)}


def random_whisper(shape: str) -> Whisper:
    """A multilingual Whisper of that shape with random weights."""
    state, heads, layers = SHAPES[shape]
    dims = ModelDimensions(80, 1500, state, heads, layers, 51865, 448, state, heads, layers)
    return Whisper(dims).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def ways(model: Whisper) -> dict[str, Callable[[], object]]:
    """The functions that are timed, by name."""
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * whisper.audio.SAMPLE_RATE).astype(np.float32)
    half = model.device.type == "cuda"
    options = whisper.DecodingOptions(language="en", without_timestamps=True, sample_len=10, fp16=half)

    def mel() -> torch.Tensor:
        padded = whisper.log_mel_spectrogram(whisper.pad_or_trim(sound), model.dims.n_mels).to(model.device)
        return padded.half() if half else padded

    def plain() -> object:
        spectrogram = mel()
        whisper.detect_language(model, spectrogram)
        return whisper.decode(model, spectrogram, options)

    def ours(detect: bool) -> object:
        with torch.inference_mode():
            features = model.encoder(mel()[None])
            if detect:
                whisper.detect_language(model, features)
            return whisper.decode(model, features, options)

    return {"plain": plain, "ours": lambda: ours(True), "ours, language given": lambda: ours(False)}


def measure(quick: bool) -> list[Figure]:
    """Measure the three shapes, or with `quick` the smallest alone."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    rounds = 1 if quick else 5
    figures = []
    for shape in list(SHAPES)[: 1 if quick else None]:
        timed_ways = ways(random_whisper(shape))
        seconds: dict[str, list[float]] = {name: [] for name in timed_ways}
        for _ in range(rounds + 1):  # the first one warms up
            for name, way in timed_ways.items():
                with timed() as watch:
                    way()
                seconds[name].append(watch.seconds)
        medians = {name: median(values[1:]) for name, values in seconds.items()}
        values = ", ".join(f"{value:.2f}" for value in medians.values())
        figures += [
            Figure(f"Whisper {shape} on {device}, s: {'; '.join(medians)}", values),
            Figure(f"Whisper {shape}: ours / plain", f"{medians['ours'] / medians['plain']:.2f}"),
        ]
    return figures
