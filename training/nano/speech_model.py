"""The embedded speech model while it is trained: Whisper's architecture in small, with CTC on its encoder.

The CTC loss (on characters; Graves et al. 2006) makes the encoder useful before the decoder is; inference doesn't use
it. Only the tokens that occur take part in the softmax, and only their rows are stored. The decoder's last layer norm
is held at 1 in its first component; so the first number of a token's row is a bias. With it, `inference.speech`
excludes all other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from whisper.model import ModelDimensions, Whisper
from whisper.tokenizer import get_tokenizer

DIMENSIONS = ModelDimensions(
    n_mels=80, n_audio_ctx=1500, n_audio_state=128, n_audio_head=4, n_audio_layer=3,
    n_vocab=51864, n_text_ctx=128, n_text_state=128, n_text_head=4, n_text_layer=2,
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789' "  # CTC's labels 1 … n; 0 is its blank
IGNORED = -100  # torch's cross_entropy skips this label
TIMESTAMP_SECONDS = 0.02  # seconds per timestamp token
LAST_TIMESTAMP = 8.0  # seconds; training has timestamps up to here


class Vocabulary:
    """The tokens in use, numbered 0 … n - 1 as in the decoder's softmax."""

    def __init__(self, texts: list[str], earlier: Sequence[int] = ()) -> None:
        """The tokens of `texts`, and those of an `earlier` training."""
        self.tokenizer = get_tokenizer(multilingual=False)
        t = self.tokenizer
        times = range(t.timestamp_begin, t.timestamp_begin + round(LAST_TIMESTAMP / TIMESTAMP_SECONDS) + 1)
        used = {token for text in texts for token in t.encode(" " + text)}
        self.tokens = sorted(used | set(earlier) | {t.sot, t.eot, t.no_timestamps, t.no_speech} | set(times))
        self.id_of = {token: i for i, token in enumerate(self.tokens)}

    def ids(self, text: str, end: float | None) -> list[int]:
        """The decoder's target for `text`; "" means no speech. With `end`, in seconds, it has timestamps."""
        t = self.tokenizer
        if not text:
            tokens = [t.sot, t.no_speech, t.eot]
        elif end is None:
            tokens = [t.sot, t.no_timestamps, *t.encode(" " + text), t.eot]
        else:
            last = t.timestamp_begin + min(round(end / TIMESTAMP_SECONDS), round(LAST_TIMESTAMP / TIMESTAMP_SECONDS))
            tokens = [t.sot, t.timestamp_begin, *t.encode(" " + text), last, t.eot]
        return [self.id_of[token] for token in tokens]


class SpeechModel(nn.Module):
    """Whisper with a softmax over the tokens in use, and CTC on its encoder."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        dims = ModelDimensions(**{**asdict(DIMENSIONS), "n_vocab": tokens})
        self.whisper = Whisper(dims)
        nn.init.normal_(self.whisper.decoder.token_embedding.weight, std=0.02)
        nn.init.normal_(self.whisper.decoder.positional_embedding, std=0.02)
        self.characters = nn.Linear(dims.n_audio_state, len(CHARACTERS) + 1)
        self.hold_bias()

    @torch.no_grad()
    def hold_bias(self) -> None:
        """Hold the decoder's last layer norm at 1 in its first component. Call it after each optimizer step."""
        self.whisper.decoder.ln.weight[0] = 0.0
        self.whisper.decoder.ln.bias[0] = 1.0

    def encode(self, mel: Tensor) -> Tensor:
        """The encoder's output (batch, frames / 2, state) for a log mel spectrogram (batch, 80, frames ≤ 3000)."""
        encoder = self.whisper.encoder
        x = functional.gelu(encoder.conv1(mel))
        x = functional.gelu(encoder.conv2(x)).permute(0, 2, 1)
        x = x + encoder.positional_embedding[: x.shape[1]]
        for block in encoder.blocks:
            x = block(x)
        return encoder.ln_post(x)

    def forward(self, mel: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """CTC's log probabilities (frames / 2, batch, characters) and the decoder's logits (batch, length, tokens)."""
        encoded = self.encode(mel)
        return self.characters(encoded).float().log_softmax(-1).transpose(0, 1), self.whisper.decoder(ids, encoded)


def compute_losses(model: SpeechModel, mel: Tensor, ids: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """The decoder's cross entropy and the encoder's CTC loss, for a batch of `Batches`."""
    log_probabilities, logits = model(mel, ids[:, :-1].clamp(min=0))
    cross_entropy = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED)
    labels = [characters(text) for text in texts]
    lengths = torch.tensor([len(label) for label in labels])
    frames = torch.full((len(texts),), log_probabilities.shape[0])
    targets = torch.tensor([c for label in labels for c in label]).to(mel.device)
    ctc = functional.ctc_loss(log_probabilities, targets, frames, lengths, zero_infinity=True)
    return cross_entropy, ctc


def characters(text: str) -> list[int]:
    """CTC's labels of a text: its letters in lower case, digits, apostrophes and spaces."""
    return [CHARACTERS.index(c) + 1 for c in text.lower() if c in CHARACTERS]


def save(model: SpeechModel, vocabulary: Vocabulary, file: Path) -> None:
    """Write the weights in half precision: of the token table only the rows in use, and no encoder positions.

    The encoder's positions follow from a formula.
    """
    weights = {k: v.detach().half().contiguous().cpu() for k, v in model.whisper.state_dict().items()}
    del weights["encoder.positional_embedding"]
    weights["rows"] = weights.pop("decoder.token_embedding.weight")
    weights["tokens"] = torch.tensor(vocabulary.tokens, dtype=torch.int32)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, file, metadata={"format": "pt", "dims": json.dumps(asdict(DIMENSIONS))})


@torch.no_grad()
def load(weights: dict[str, Tensor], model: SpeechModel, vocabulary: Vocabulary) -> None:
    """Load weights that `save` wrote into a model with the same tokens or more."""
    table = model.whisper.decoder.token_embedding.weight
    for token, row in zip(weights.pop("tokens").tolist(), weights.pop("rows"), strict=True):
        table[vocabulary.id_of[token]] = row
    model.whisper.load_state_dict(weights, strict=False)
