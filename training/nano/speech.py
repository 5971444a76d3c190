"""Make the embedded speech model: Whisper's architecture in small, trained from scratch on espeak-ng's voices.
`python -m training.nano.speech` writes `adapters/nano-speech` (minutes on a GPU, hours on 2 cores; needs espeak-ng).

What ships had two stages, as its run.json tells: `--steps 6965 --utterances 32000 --batch-size 48`, then with
`--start adapters/nano-speech --steps 5612 --utterances 22000 --batch-size 96 --peak 1.2e-3 --seed 1`.

Beside the decoder's loss a CTC loss on the encoder (characters; Graves et al. 2006) makes the encoder listen before the
decoder can; it is used in training only. The padding is that of inference: 0.0 in the mel spectrogram. Only tokens that
occur take part in the softmax, and only their rows are stored: the decoder's last layer norm is held at 1 in its first
component, so that a row's first number is a bias with which `inference.speech.transcriber` shuts all other tokens out.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import whisper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

from inference.speech import SAMPLE_RATE
from training.nano.utterances import draw_utterance, no_speech, synthesize_all
from training.plots import draw_loss
from training.publish.card import write_card
from training.run_record import device_name, read_run_record, write_run_record

DIMENSIONS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=128, n_audio_head=4, n_audio_layer=3,
    n_vocab=51864, n_text_ctx=128, n_text_state=128, n_text_head=4, n_text_layer=2,
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789' "  # CTC's, after its blank 0
IGNORED = -100
TIMES = 0.02  # seconds a time stamp token
LONGEST = 8.0  # seconds: time stamps up to here are taught
NOISES, NOISE_SECONDS = 400, 15.0  # recordings without speech
WIDTHS = 50  # mels are this many frames wide, or a multiple: a GPU's libraries plan anew for each width
DESCRIPTION = (
    "A Whisper of {parameters:.1f} million parameters, trained from scratch with `python -m training.nano.speech` on "
    "{hours:.0f} hours of espeak-ng's voices: short English questions about emoji. It knows no human voice; it is "
    "there so that the microphone works where no other speech model can be had."
)


class Words:
    """Text ⇄ ids of the tokens in use, 0 … n - 1, as the decoder's softmax sees them."""

    def __init__(self, texts: list[str], before: Sequence[int] = ()) -> None:
        """All tokens of `texts`, and those that were in use `before`."""
        self.tokenizer = get_tokenizer(multilingual=False)
        t = self.tokenizer
        times = range(t.timestamp_begin, t.timestamp_begin + round(LONGEST / TIMES) + 1)
        used = {token for text in texts for token in t.encode(" " + text)}
        self.tokens = sorted(used | set(before) | {t.sot, t.eot, t.no_timestamps, t.no_speech} | set(times))
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


class Batches:
    """Batches of utterances of similar length, each changed a little, drawn without end. All sound lies on the device
    and is changed there."""

    def __init__(self, sounds: list[np.ndarray], texts: list[str], words: Words, size: int, device: str) -> None:
        self.texts, self.words, self.size, self.device = texts, words, size, device
        self.rng = np.random.default_rng(0)
        self.sizes = np.array([sound.size for sound in sounds])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.peaks = np.array([np.abs(sound).max() for sound in sounds], np.float32)
        self.sound = torch.from_numpy(np.concatenate(sounds)).to(device)
        noises = np.stack([no_speech(self.rng, NOISE_SECONDS) for _ in range(NOISES)])
        self.noises = torch.from_numpy(noises).to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Mel (batch, 80, frames), target ids (batch, length), texts."""
        while True:
            order = np.argsort(self.sizes * self.rng.uniform(0.9, 1.1, self.sizes.size))
            batches = [order[i : i + self.size] for i in range(0, order.size - self.size + 1, self.size)]
            self.rng.shuffle(batches)
            yield from map(self.batch, batches)

    def column(self, values: np.ndarray) -> Tensor:
        """One number a row, (batch, 1), on the device."""
        return torch.from_numpy(values)[:, None].to(self.device)

    def chance(self, share: float) -> np.ndarray:
        """True in about that share of the rows, (batch,)."""
        return self.rng.random(self.size) < share

    def batch(self, chosen: np.ndarray) -> tuple[Tensor, Tensor, list[str]]:
        """The chosen utterances: later, louder or softer, slightly resampled, in noise; a few are noise alone."""
        rng, n = self.rng, self.size
        speed = np.where(self.chance(0.5), rng.uniform(0.92, 1.08, n), 1.0)
        before = (SAMPLE_RATE * rng.uniform(0, 1, n) * rng.choice([0.0, 0.3, 1.5], n)).astype(int)
        after = (SAMPLE_RATE * rng.uniform(0, 1, n) * rng.choice([0.0, 0.5, 3.0], n)).astype(int)
        ends = before + (self.sizes[chosen] / speed).astype(int)
        nobody = self.chance(0.06)
        totals = np.where(
            nobody, (SAMPLE_RATE * rng.uniform(0.3, self.sizes[chosen] / SAMPLE_RATE + 0.5)).astype(int), ends + after
        )
        sound = self.spoken(chosen, speed, before, int(totals.max()), rng.uniform(0.1, 1.0, n))
        noise = self.noises[rng.integers(NOISES, size=n)][:, : sound.shape[1]]
        white = torch.randn(sound.shape, device=self.device) / 4
        noise = torch.where(self.column(self.chance(0.6) & ~nobody), white, noise)
        level = 10 ** rng.uniform(-3.5, -1, n) * self.chance(0.6)
        loudness = noise.abs().amax(1, keepdim=True) + 1e-9
        noisy = sound + noise / loudness * sound.abs().amax(1, keepdim=True) * self.column(level).float()
        sound = torch.where(self.column(nobody), noise, noisy).clamp(-1, 1)
        sound = sound * (torch.arange(sound.shape[1], device=self.device) < self.column(totals))
        texts = ["" if alone else self.texts[i] for i, alone in zip(chosen, nobody, strict=True)]
        timed = self.chance(0.2)
        targets = [
            torch.tensor(self.words.ids(text, end / SAMPLE_RATE if with_times else None))
            for text, end, with_times in zip(texts, ends, timed, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        return self.masked(mel_of(sound), totals // whisper.audio.HOP_LENGTH), ids.to(self.device), texts

    def spoken(
        self, chosen: np.ndarray, speed: np.ndarray, before: np.ndarray, length: int, peak: np.ndarray
    ) -> Tensor:
        """The utterances (batch, length) from sample `before` on, resampled by linear interpolation, with that peak."""
        at = (torch.arange(length, device=self.device) - self.column(before)) * self.column(speed)
        last = self.column(self.sizes[chosen] - 2)
        left = at.floor().long().clamp(min=0).minimum(last)
        index = self.column(self.starts[chosen]) + left
        sound = torch.lerp(self.sound[index].float(), self.sound[index + 1].float(), (at - left).float())
        gain = self.column((peak / (self.peaks[chosen] + 1e-6)).astype(np.float32))
        return sound * gain * ((at >= 0) & (at <= last))

    def masked(self, mel: Tensor, frames: np.ndarray) -> Tensor:
        """SpecAugment (Park et al. 2019), then 0.0 after each row's `frames` and after all of them: most batches are
        padded a little, some to the 3,000 frames that inference always has."""
        rng, n = self.rng, self.size
        share = rng.random()
        width = frames.max() + (0 if share < 0.3 else rng.integers(400) if share < 0.7 else rng.integers(400, 3000))
        width = min(3000, int(width + -width % WIDTHS))
        mel, frames = mel[:, :, :width], np.minimum(frames, 3000)
        band = torch.arange(mel.shape[1], device=self.device)[None]
        time = torch.arange(mel.shape[2], device=self.device)[None]
        masked = torch.zeros(mel.shape, dtype=torch.bool, device=self.device)
        for _ in range(2):
            low, at = self.column(rng.integers(mel.shape[1], size=n)), self.column(rng.integers(1, frames + 2))
            high, until = low + self.column(rng.integers(11, size=n)), at + self.column(rng.integers(11, size=n))
            masked |= ((band >= low) & (band < high))[:, :, None] | ((time >= at) & (time < until))[:, None]
        mel = torch.where(masked, mel.mean((1, 2), keepdim=True), mel) * (time < self.column(frames))[:, None]
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


def train(ears: Ears, batches: Batches, steps: int, peak: float) -> list[tuple[int, float]]:
    """AdamW with a cosine, bf16 autocast. Returns the decoder's losses."""
    optimizer = torch.optim.AdamW(ears.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 300) * (0.01 + 0.99 * (1 + math.cos(math.pi * s / steps)) / 2)
    )
    device = next(ears.parameters()).device.type
    drawn = iter(batches)
    losses: list[tuple[int, float]] = []
    shown = {"label": "speech", "item_show_func": lambda _: f"loss {losses[-1][1]:.3f}" if losses else None}
    with typer.progressbar(range(steps), **shown) as bar:
        for step in bar:
            mel, ids, texts = next(drawn)
            with torch.autocast(device, torch.bfloat16):
                spoken, ctc = losses_of(ears, mel, ids, texts)
            (spoken + 0.5 * ctc).backward()
            nn.utils.clip_grad_norm_(ears.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            ears.hold()
            if step % 50 == 0 or step == steps - 1:
                losses.append((step, round(spoken.item(), 4)))
    return losses


def pack(ears: Ears, words: Words, file: Path) -> None:
    """Half precision, rows of tokens in use only; the encoder's positions are a formula and not stored."""
    weights = {k: v.detach().half().contiguous().cpu() for k, v in ears.whisper.state_dict().items()}
    del weights["encoder.positional_embedding"]
    weights["rows"] = weights.pop("decoder.token_embedding.weight")
    weights["tokens"] = torch.tensor(words.tokens, dtype=torch.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt", "dims": json.dumps(asdict(DIMENSIONS))})


@torch.no_grad()
def unpack(weights: dict[str, Tensor], ears: Ears, words: Words) -> None:
    """What `pack` wrote, into ears whose tokens may be more."""
    table = ears.whisper.decoder.token_embedding.weight
    for token, row in zip(weights.pop("tokens").tolist(), weights.pop("rows"), strict=True):
        table[words.id_of[token]] = row
    ears.whisper.load_state_dict(weights, strict=False)


def main(
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 4600,
    utterances: Annotated[int, typer.Option(help="How many to synthesize.")] = 24_000,
    batch_size: Annotated[int, typer.Option(help="Utterances a step.")] = 32,
    peak: Annotated[float, typer.Option(help="The highest learning rate.")] = 1.5e-3,
    seed: Annotated[int, typer.Option(help="Draws what is said and by whom.")] = 0,
    start: Annotated[Path | None, typer.Option(help="A model folder to go on from instead of from scratch.")] = None,
    out: Annotated[Path, typer.Option(help="The model folder to write.")] = Path("adapters/nano-speech"),
) -> None:
    """Synthesize, train and write the embedded speech model."""
    torch.manual_seed(seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans for 0.1 s at each new shape
    rng = random.Random(seed)
    drawn = [draw_utterance(rng) for _ in range(utterances)]
    sounds = synthesize_all(drawn)
    texts = [u.text for u in drawn]
    before = load_file(start / "model.safetensors") if start else {}
    words = Words(texts, before["tokens"].tolist() if start else ())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    ears = Ears(len(words.tokens))
    if start:
        unpack(before, ears, words)
    ears.to(device)
    started = time.perf_counter()
    losses = train(ears, Batches(sounds, texts, words, batch_size, device), steps, peak)
    stage = {
        "steps": steps, "batch_size": batch_size, "learning_rate": peak, "utterances": utterances,
        "hours": round(sum(s.size for s in sounds) / SAMPLE_RATE / 3600, 1), "seed": seed,
        "seconds": round(time.perf_counter() - started, 1), "losses": losses, "device": device_name(),
    }  # fmt: skip
    stages = [*(read_run_record(start)["stages"] if start else ()), stage]
    pack(ears, words, out / "model.safetensors")
    parameters = sum(p.numel() for p in ears.whisper.parameters())
    hours = sum(s["hours"] for s in stages)
    write_run_record(
        out,
        {
            "description": DESCRIPTION.format(parameters=parameters / 1e6, hours=hours), "license": "mit",
            "pipeline_tag": "automatic-speech-recognition", "library_name": "whisper", "tags": ["whisper", "espeak-ng"],
            "parameters": parameters, "torch": torch.__version__, "stages": stages,
        },
    )  # fmt: skip
    draw_loss({f"nano-speech, stage {i}": stage["losses"] for i, stage in enumerate(stages, 1)}, out / "loss.png")
    write_card(out)


if __name__ == "__main__":
    typer.run(main)
