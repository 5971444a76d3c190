"""Batches for training the embedded speech model: synthetic utterances, changed at random in each batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import whisper
from torch import Tensor, nn
from torch.nn import functional

from inference.speech import SAMPLE_RATE
from training.nano.speech_model import DIMENSIONS, IGNORED, Vocabulary
from training.nano.utterances import no_speech

NOISES, NOISE_SECONDS = 400, 15.0  # recordings without speech: how many, and how long
WIDTHS = 50  # a spectrogram's width in frames is a multiple of this: a GPU's libraries plan again for each new width
FRAMES = 3000  # the width of spectrograms at inference


def log_mel(audio: Tensor) -> Tensor:
    """The log mel spectrogram (batch, 80, frames) of audio (batch, samples).

    It is as in `whisper.log_mel_spectrogram`, but relative to the maximum of each recording, not of the batch.
    """
    window = torch.hann_window(whisper.audio.N_FFT, device=audio.device)
    spectrum = torch.stft(audio, window.numel(), whisper.audio.HOP_LENGTH, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    log = (whisper.audio.mel_filters(audio.device, DIMENSIONS.n_mels) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Batches:
    """Endless batches of utterances of similar length, each changed at random. The sounds are stored and changed on the
    device. `size` is the number of utterances in a batch."""

    def __init__(
        self, sounds: list[np.ndarray], texts: list[str], vocabulary: Vocabulary, size: int, device: str
    ) -> None:
        self.texts, self.vocabulary, self.size, self.device = texts, vocabulary, size, device
        self.rng = np.random.default_rng(0)
        self.sizes = np.array([sound.size for sound in sounds])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.peaks = np.array([np.abs(sound).max() for sound in sounds], np.float32)
        self.sound = torch.from_numpy(np.concatenate(sounds)).to(device)
        noises = np.stack([no_speech(self.rng, NOISE_SECONDS) for _ in range(NOISES)])
        self.noises = torch.from_numpy(noises).to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield log mel spectrograms (batch, 80, frames), target ids (batch, length) and texts."""
        while True:
            order = np.argsort(self.sizes * self.rng.uniform(0.9, 1.1, self.sizes.size))
            batches = [order[i : i + self.size] for i in range(0, order.size - self.size + 1, self.size)]
            self.rng.shuffle(batches)
            yield from map(self.batch, batches)

    def column(self, values: np.ndarray) -> Tensor:
        """One number per row, (batch, 1), on the device."""
        return torch.from_numpy(values)[:, None].to(self.device)

    def chance(self, share: float) -> np.ndarray:
        """True with a probability of `share`, (batch,)."""
        return self.rng.random(self.size) < share

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor, list[str]]:
        """The chosen utterances: shifted, louder or softer, slightly resampled, in noise. A few are noise alone."""
        rng, n = self.rng, self.size
        speed = np.where(self.chance(0.5), rng.uniform(0.92, 1.08, n), 1.0)
        before = (SAMPLE_RATE * rng.uniform(0, 1, n) * rng.choice([0.0, 0.3, 1.5], n)).astype(int)
        after = (SAMPLE_RATE * rng.uniform(0, 1, n) * rng.choice([0.0, 0.5, 3.0], n)).astype(int)
        ends = before + (self.sizes[chosen] / speed).astype(int)
        silent = self.chance(0.06)
        totals = np.where(
            silent, (SAMPLE_RATE * rng.uniform(0.3, self.sizes[chosen] / SAMPLE_RATE + 0.5)).astype(int), ends + after
        )
        sound = self.speech(chosen, speed, before, int(totals.max()), rng.uniform(0.1, 1.0, n))
        noise = self.noises[rng.integers(NOISES, size=n)][:, : sound.shape[1]]
        white = torch.randn(sound.shape, device=self.device) / 4
        noise = torch.where(self.column(self.chance(0.6) & ~silent), white, noise)
        level = 10 ** rng.uniform(-3.5, -1, n) * self.chance(0.6)
        loudness = noise.abs().amax(1, keepdim=True) + 1e-9
        noisy = sound + noise / loudness * sound.abs().amax(1, keepdim=True) * self.column(level).float()
        sound = torch.where(self.column(silent), noise, noisy).clamp(-1, 1)
        sound = sound * (torch.arange(sound.shape[1], device=self.device) < self.column(totals))
        texts = ["" if alone else self.texts[i] for i, alone in zip(chosen, silent, strict=True)]
        timed = self.chance(0.2)
        targets = [
            torch.tensor(self.vocabulary.ids(text, end / SAMPLE_RATE if with_times else None))
            for text, end, with_times in zip(texts, ends, timed, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return self.mask(log_mel(sound), totals // whisper.audio.HOP_LENGTH), ids.to(self.device), texts

    def speech(
        self, chosen: np.ndarray, speed: np.ndarray, before: np.ndarray, length: int, peak: np.ndarray
    ) -> Tensor:
        """The utterances (batch, length), each from sample `before` on and with that peak.

        Linear interpolation resamples them by `speed`.
        """
        at = (torch.arange(length, device=self.device) - self.column(before)) * self.column(speed)
        last = self.column(self.sizes[chosen] - 2)
        left = at.floor().long().clamp(min=0).minimum(last)
        index = self.column(self.starts[chosen]) + left
        sound = torch.lerp(self.sound[index].float(), self.sound[index + 1].float(), (at - left).float())
        gain = self.column((peak / (self.peaks[chosen] + 1e-6)).astype(np.float32))
        return sound * gain * ((at >= 0) & (at <= last))

    def mask(self, mel: Tensor, frames: np.ndarray) -> Tensor:
        """SpecAugment (Park et al. 2019), then padding with 0.0 after each row's `frames`, as at inference.

        Most batches are padded a little, some to the 3,000 frames that inference always has.
        """
        rng, n = self.rng, self.size
        share = rng.random()
        width = frames.max() + (0 if share < 0.3 else rng.integers(400) if share < 0.7 else rng.integers(400, FRAMES))
        width = min(FRAMES, int(width + -width % WIDTHS))
        mel, frames = mel[:, :, :width], np.minimum(frames, FRAMES)
        band = torch.arange(mel.shape[1], device=self.device)[None]
        time = torch.arange(mel.shape[2], device=self.device)[None]
        masked = torch.zeros(mel.shape, dtype=torch.bool, device=self.device)
        for _ in range(2):
            low, at = self.column(rng.integers(mel.shape[1], size=n)), self.column(rng.integers(1, frames + 2))
            high, until = low + self.column(rng.integers(11, size=n)), at + self.column(rng.integers(11, size=n))
            masked |= ((band >= low) & (band < high))[:, :, None] | ((time >= at) & (time < until))[:, None]
        mel = torch.where(masked, mel.mean((1, 2), keepdim=True), mel) * (time < self.column(frames))[:, None]
        return functional.pad(mel, (0, width - mel.shape[2]))
