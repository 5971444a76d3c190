"""Make the embedded speech model: Whisper's architecture in small, trained from scratch on espeak-ng's voices.
`python -m training.nano.speech` writes `adapters/nano-speech` (half an hour on 2 cores; needs espeak-ng).

Beside the decoder's loss a CTC loss on the encoder (characters; Graves et al. 2006) makes the encoder listen before the
decoder can; it is used in training only. The padding is that of inference: 0.0 in the mel spectrogram. Only tokens that
occur take part in the softmax, and only their rows are stored: the decoder's last layer norm is held at 1 in its first
component, so that a row's first number is a bias with which `inference.speech` shuts all other tokens out.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import whisper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from inference.speech import RATE
from training.card import write_card
from training.nano.utterances import draw_utterance, no_speech, synthesize_all
from training.plots import draw_loss
from training.receipt import device_name, write_receipt

DIMENSIONS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=128, n_audio_head=4, n_audio_layer=3,
    n_vocab=51864, n_text_ctx=128, n_text_state=128, n_text_head=4, n_text_layer=2,
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789' "  # CTC's, after its blank 0
IGNORED = -100
TIMES = 0.02  # seconds a time stamp token
LONGEST = 8.0  # seconds: time stamps up to here are taught
DESCRIPTION = (
    "A Whisper of {parameters:.1f} million parameters, trained from scratch with `python -m training.nano.speech` on "
    "{hours:.0f} hours of espeak-ng's voices: short English questions about emoji. It knows no human voice; it is "
    "there so that the microphone works where no other speech model can be had."
)


class Words:
    """Text ⇄ ids of the tokens in use, 0 … n - 1, as the decoder's softmax sees them."""

    def __init__(self, texts: list[str]) -> None:
        self.tokenizer = get_tokenizer(multilingual=False)
        t = self.tokenizer
        times = range(t.timestamp_begin, t.timestamp_begin + round(LONGEST / TIMES) + 1)
        used = {token for text in texts for token in t.encode(" " + text)}
        self.tokens = sorted(used | {t.sot, t.eot, t.no_timestamps, t.no_speech} | set(times))
        self.id_of = {token: i for i, token in enumerate(self.tokens)}

    def ids(self, text: str, end: float | None) -> list[int]:
        """The decoder's target for `text` (empty: no speech); `end` in seconds asks for time stamps."""
        t = self.tokenizer
        if not text:
            tokens = [t.sot, t.no_speech, t.eot]
        elif end is None:
            tokens = [t.sot, t.no_timestamps, *t.encode(" " + text), t.eot]
        else:
            last = t.timestamp_begin + min(round(end / TIMES), round(LONGEST / TIMES))
            tokens = [t.sot, t.timestamp_begin, *t.encode(" " + text), last, t.eot]
        return [self.id_of[token] for token in tokens]


class Ears(nn.Module):
    """Whisper with a softmax over the tokens in use, and CTC on its encoder."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        dims = ModelDimensions(**{**asdict(DIMENSIONS), "n_vocab": vocabulary})
        self.whisper = Whisper(dims)
        nn.init.normal_(self.whisper.decoder.token_embedding.weight, std=0.02)
        nn.init.normal_(self.whisper.decoder.positional_embedding, std=0.02)
        self.characters = nn.Linear(dims.n_audio_state, len(CHARACTERS) + 1)
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Keep the decoder's last layer norm at 1 in its first component: a row's first number is a bias."""
        self.whisper.decoder.ln.weight[0] = 0.0
        self.whisper.decoder.ln.bias[0] = 1.0

    def encode(self, mel: Tensor) -> Tensor:
        """The encoder's output (batch, frames / 2, state) for mel (batch, 80, frames ≤ 3000)."""
        encoder = self.whisper.encoder
        x = functional.gelu(encoder.conv1(mel))
        x = functional.gelu(encoder.conv2(x)).permute(0, 2, 1)
        x = x + encoder.positional_embedding[: x.shape[1]]
        for block in encoder.blocks:
            x = block(x)
        return encoder.ln_post(x)

    def forward(self, mel: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """CTC's log probabilities (frames / 2, batch, characters) and the decoder's logits (batch, length, tokens)."""
        heard = self.encode(mel)
        return self.characters(heard).float().log_softmax(-1).transpose(0, 1), self.whisper.decoder(ids, heard)


def mel_of(audio: Tensor) -> Tensor:
    """Log mel (batch, 80, frames) as `whisper.log_mel_spectrogram` makes it, each recording by its own maximum."""
    window = torch.hann_window(whisper.audio.N_FFT, device=audio.device)
    spectrum = torch.stft(audio, window.numel(), whisper.audio.HOP_LENGTH, window=window, return_complex=True)
    power = spectrum[..., :-1].abs() ** 2
    log = (whisper.audio.mel_filters(audio.device, DIMENSIONS.n_mels) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8) + 4) / 4


class Batches(torch.utils.data.IterableDataset):
    """Batches of utterances of similar length, each changed a little, drawn without end by one or several workers."""

    def __init__(self, sounds: list[np.ndarray], texts: list[str], words: Words, size: int) -> None:
        self.sounds, self.texts, self.words, self.size = sounds, texts, words, size
        self.rng, self.np_rng = random.Random(), np.random.default_rng()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, int, Tensor, list[str]]]:
        """Audio (batch, samples), what of its mel to keep (batch, 80, frames), the frames to pad it to, target ids
        (batch, length), texts."""
        info = torch.utils.data.get_worker_info()
        seed = info.id if info else 0
        self.rng, self.np_rng = random.Random(seed), np.random.default_rng(seed)
        while True:
            order = sorted(range(len(self.sounds)), key=lambda i: self.sounds[i].size * self.rng.uniform(0.9, 1.1))
            batches = [order[i : i + self.size] for i in range(0, len(order) - self.size + 1, self.size)]
            self.rng.shuffle(batches)
            yield from map(self.batch, batches)

    def changed(self, sound: np.ndarray) -> tuple[np.ndarray, float]:
        """The sound later, louder or softer, slightly resampled, in noise; and where it ends, in seconds."""
        rng, np_rng = self.rng, self.np_rng
        sound = sound.astype(np.float32)
        if rng.random() < 0.5:
            count = int(sound.size * rng.uniform(0.92, 1.08))
            sound = np.interp(np.linspace(0, sound.size - 1, count), np.arange(sound.size), sound).astype(np.float32)
        before = int(RATE * rng.choice([0.0, rng.uniform(0, 0.3), rng.uniform(0, 1.5)]))
        after = int(RATE * rng.choice([0.0, rng.uniform(0, 0.5), rng.uniform(0, 3)]))
        end = (before + sound.size) / RATE
        sound = np.pad(sound * rng.uniform(0.1, 1.0) / (np.abs(sound).max() + 1e-6), (before, after))
        if rng.random() < 0.6:
            white = np_rng.standard_normal(sound.size, np.float32)
            noise = white if rng.random() < 0.6 else no_speech(np_rng, (sound.size + 1) / RATE)[: sound.size]
            sound = sound + noise / (np.abs(noise).max() + 1e-9) * np.abs(sound).max() * 10 ** rng.uniform(-3.5, -1)
        return sound.clip(-1, 1).astype(np.float32), end

    def batch(self, chosen: list[int]) -> tuple[Tensor, Tensor, int, Tensor, list[str]]:
        """One batch of the chosen utterances."""
        rng = self.rng
        sounds, targets, texts = [], [], []
        for i in chosen:
            text, end = self.texts[i], 0.0
            if rng.random() < 0.06:
                text, sound = "", no_speech(self.np_rng, rng.uniform(0.3, self.sounds[i].size / RATE + 0.5))
            else:
                sound, end = self.changed(self.sounds[i])
            sounds.append(sound)
            texts.append(text)
            targets.append(torch.tensor(self.words.ids(text, end if rng.random() < 0.2 else None)))
        # Most batches are padded a little, some to the 3,000 frames that inference always has.
        frames = [min(3000, s.size // whisper.audio.HOP_LENGTH) for s in sounds]
        share = rng.random()
        width = max(frames) + (0 if share < 0.3 else rng.randint(0, 400) if share < 0.7 else rng.randint(400, 3000))
        width = min(3000, width + width % 2)
        audio = torch.zeros(len(sounds), max(s.size for s in sounds))
        keep = torch.ones(len(sounds), DIMENSIONS.n_mels, max(frames), dtype=torch.uint8)  # 0 masked, 2 after the end
        for row, (sound, length) in enumerate(zip(sounds, frames, strict=True)):
            audio[row, : sound.size] = torch.from_numpy(sound)
            for _ in range(2):  # SpecAugment (Park et al. 2019)
                low, at = rng.randint(0, DIMENSIONS.n_mels - 1), rng.randint(0, max(1, length))
                keep[row, low : low + rng.randint(0, 10)] = 0
                keep[row, :, at : at + rng.randint(0, 10)] = 0
            keep[row, :, length:] = 2
        ids = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return audio, keep, width, ids, texts


def masked(mel: Tensor, keep: Tensor, width: int) -> Tensor:
    """The mel with its mean where `keep` is 0 and 0.0 where it is 2, padded with 0.0 to `width` frames."""
    mel = mel[:, :, : keep.shape[2]]
    mel = torch.where(keep == 0, mel.mean((1, 2), keepdim=True), mel) * (keep != 2)
    return functional.pad(mel, (0, width - mel.shape[2]))


def characters(text: str) -> list[int]:
    """CTC's target: lower case letters, digits, apostrophes and spaces."""
    return [CHARACTERS.index(c) + 1 for c in text.lower() if c in CHARACTERS]


def losses_of(ears: Ears, mel: Tensor, ids: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The decoder's cross entropy and the encoder's CTC loss."""
    log_probabilities, logits = ears(mel, ids[:, :-1].clamp(min=0))
    spoken = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)
    spelled = [characters(text) for text in texts]
    lengths = torch.tensor([len(s) for s in spelled])
    frames = torch.full((len(texts),), log_probabilities.shape[0])
    targets = torch.tensor([c for s in spelled for c in s]).to(mel.device)
    ctc = functional.ctc_loss(log_probabilities, targets, frames, lengths, zero_infinity=True)
    return spoken, ctc


def train(ears: Ears, batches: Batches, steps: int, peak: float = 1.5e-3) -> list[tuple[int, float]]:
    """AdamW with a cosine, bf16 autocast. Returns the decoder's losses."""
    optimizer = torch.optim.AdamW(ears.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 300) * (0.01 + 0.99 * (1 + math.cos(math.pi * s / steps)) / 2)
    )
    device = next(ears.parameters()).device.type
    workers = max(1, (os.cpu_count() or 2) // 2)
    loader = iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=8))
    losses: list[tuple[int, float]] = []
    shown = {"label": "speech", "item_show_func": lambda _: f"loss {losses[-1][1]:.3f}" if losses else None}
    with typer.progressbar(range(steps), **shown) as bar:
        for step in bar:
            audio, keep, width, ids, texts = next(loader)
            mel = masked(mel_of(audio.to(device)), keep.to(device), width)
            with torch.autocast(device, torch.bfloat16):
                spoken, ctc = losses_of(ears, mel, ids.to(device), texts)
            (spoken + 0.5 * ctc).backward()
            nn.utils.clip_grad_norm_(ears.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            ears.hold()
            if step % 50 == 0 or step == steps - 1:
                losses.append((step, round(spoken.item(), 4)))
            if step % 500 == 0:
                print(step, round(spoken.item(), 4), round(ctc.item(), 4), flush=True)
    return losses


def pack(ears: Ears, words: Words, file: Path) -> None:
    """Half precision, rows of tokens in use only; the encoder's positions are a formula and not stored."""
    weights = {k: v.detach().half().contiguous().cpu() for k, v in ears.whisper.state_dict().items()}
    del weights["encoder.positional_embedding"]
    weights["rows"] = weights.pop("decoder.token_embedding.weight")
    weights["tokens"] = torch.tensor(words.tokens, dtype=torch.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt", "dims": json.dumps(asdict(DIMENSIONS))})


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4600,
    utterances: Annotated[int, typer.Option(help="How many to synthesize.")] = 24_000,
    batch_size: Annotated[int, typer.Option(help="Utterances a step.")] = 32,
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path("adapters/nano-speech"),
) -> None:
    """Synthesize, train and write the embedded speech model."""
    torch.manual_seed(0)
    rng = random.Random(0)
    drawn = [draw_utterance(rng) for _ in range(utterances)]
    sounds = synthesize_all(drawn)
    texts = [u.text for u in drawn]
    words = Words(texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ears = Ears(len(words.tokens)).to(device)
    started = time.perf_counter()
    losses = train(ears, Batches(sounds, texts, words, batch_size), steps)
    seconds = time.perf_counter() - started
    pack(ears, words, out / "model.safetensors")
    hours = sum(s.size for s in sounds) / RATE / 3600
    parameters = sum(p.numel() for p in ears.whisper.parameters())
    write_receipt(
        out,
        {
            "description": DESCRIPTION.format(parameters=parameters / 1e6, hours=hours), "license": "mit",
            "pipeline_tag": "automatic-speech-recognition", "library_name": "whisper", "tags": ["whisper", "espeak-ng"],
            "parameters": parameters, "steps": steps, "batch_size": batch_size, "utterances": utterances,
            "hours": round(hours, 1), "seed": 0, "seconds": round(seconds, 1), "losses": losses,
            "device": device_name(), "torch": torch.__version__,
        },
    )  # fmt: skip
    draw_loss({"nano-speech": losses}, out / "loss.png")
    write_card(out)


if __name__ == "__main__":
    typer.run(main)
