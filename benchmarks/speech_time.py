"""How long from stop to transcript? `python -m benchmarks.speech_time`

A question of 3 s on Whisper's tiny, base and small shapes with random weights, which compute as real ones do; ten
tokens are decoded, about as many as such a question has. Plain: the language is found out and the text decoded by
`whisper.detect_language` and `whisper.decode`, each of which encodes. Ours encodes once. In turns, in one process.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import whisper
from whisper.model import ModelDimensions, Whisper

# As in the checkpoints' own dims: state, heads and layers of encoder and decoder alike.
SHAPES = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12)}
ROUNDS = 5


def model_of(shape: str) -> Whisper:
    """A multilingual Whisper of that shape with random weights."""
    state, heads, layers = SHAPES[shape]
    dims = ModelDimensions(80, 1500, state, heads, layers, 51865, 448, state, heads, layers)
    return Whisper(dims).eval().to("cuda" if torch.cuda.is_available() else "cpu")


def ways(model: Whisper) -> dict[str, Callable[[], object]]:
    """What is timed."""
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * whisper.audio.SAMPLE_RATE).astype(np.float32)
    half = model.device.type == "cuda"

    def mel() -> torch.Tensor:
        padded = whisper.log_mel_spectrogram(whisper.pad_or_trim(sound), model.dims.n_mels).to(model.device)
        return padded.half() if half else padded

    options = whisper.DecodingOptions(language="en", without_timestamps=True, sample_len=10, fp16=half)

    def plain() -> object:
        spectrogram = mel()
        whisper.detect_language(model, spectrogram)
        return whisper.decode(model, spectrogram, options)

    def ours(find_out: bool) -> object:
        with torch.inference_mode():
            features = model.encoder(mel()[None])
            if find_out:
                whisper.detect_language(model, features)
            return whisper.decode(model, features, options)

    return {"plain": plain, "ours": lambda: ours(True), "ours, language given": lambda: ours(False)}


def main() -> None:
    """Measure and print a Markdown table of medians, in seconds."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    print(f"| shape, on {where} | plain | ours | ours, language given | ours / plain |\n|---|---|---|---|---|")
    for shape in SHAPES:
        timed = ways(model_of(shape))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(ROUNDS + 1):  # the first one warms up
            for name, run in timed.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
        cells = " | ".join(f"{value:.2f}" for value in medians.values())
        print(f"| {shape} | {cells} | {medians['ours'] / medians['plain']:.2f} |")


if __name__ == "__main__":
    main()
