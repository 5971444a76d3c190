"""Load a Whisper model (Radford et al. 2022), or build the embedded one, and transcribe samples with it.

A recording of at most 30 s is one window: the encoder runs once for it, also if the language is detected or decoding is
retried. A longer recording goes through Whisper's own windowing.
"""

from __future__ import annotations

import json
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from inference.errors import LabError
from inference.settings import PROJECT
from inference.speech.audio import SAMPLE_RATE, Samples

if TYPE_CHECKING:
    import whisper

WINDOW = 30  # seconds that Whisper's encoder reads at once
# Where `whisper.load_model` keeps its downloads.
WHISPER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper"
EMBEDDED = PROJECT / "adapters" / "nano-speech" / "model.safetensors"
UNUSED_TOKEN_BIAS = -60.0  # a logit that no token is sampled with
TEMPERATURES = (0.0, 0.4, 0.8)  # greedy first; higher ones if the text repeats itself or is unlikely
# Whisper's own thresholds (transcribe.py) for a text that it does not trust, and for a window without speech.
COMPRESSION_RATIO = 2.4
LOG_PROBABILITY = -1.0
NO_SPEECH = 0.6
# Above this, "no speech" wins over a confident text: Whisper invents "Thank you." with high confidence.
CERTAINLY_NO_SPEECH = 0.9


def load_whisper(name: str, device: str | None = None) -> whisper.Whisper:
    """Load a Whisper model by its name or its checkpoint's path: float16 on a GPU, float32 on a CPU. `device` None is
    the GPU if there is one.

    Raises:
        LabError: the name is unknown, the download fails, or the checkpoint is damaged. The cause of a failed
            download is a `URLError`.
    """
    import torch
    import whisper

    # cuDNN's attention prepares each new length for a third of a second, and each token of a text is a new length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    known = whisper.available_models()
    if name not in known and not Path(name).is_file():
        raise LabError(f"There is no speech model {name}: set WHISPER_MODEL to a file or one of {', '.join(known)}.")
    try:
        model = whisper.load_model(name, device).eval()
    except URLError as error:
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise LabError(
            f"Whisper {name} could not be downloaded ({reason}): check the network, or set WHISPER_MODEL to a file."
        ) from error
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, OSError) and name in known:
            raise LabError(
                f"Whisper {name} could not be saved ({error.strerror or error}): free some disk space."
            ) from error
        raise damaged_checkpoint(name) from error
    if not all(weights.isfinite().all() for weights in model.parameters()):
        raise damaged_checkpoint(name)
    return model


def damaged_checkpoint(name: str) -> LabError:
    """Return the error for a file that holds no usable Whisper model."""
    return LabError(f"{Path(name).name} is damaged or not a Whisper checkpoint: delete it, or set another file.")


def downloaded_bytes(name: str) -> int:
    """Bytes of Whisper's own download of `name` so far. Imports nothing heavy."""
    if Path(name).name != name:
        return 0  # a path
    return max((file.stat().st_size for file in WHISPER_CACHE.glob(f"{name}*.pt")), default=0)


def embedded_whisper() -> whisper.Whisper:
    """Build the embedded model.

    The embedded file holds only the rows of the tokens in use. Every other token gets a first component that makes it
    impossible: the decoder's last layer norm gives 1 there, so the component acts as a bias (see
    `training/nano/speech.py`).

    Raises:
        LabError: the embedded model is missing.
    """
    import torch
    from safetensors import safe_open
    from whisper.model import ModelDimensions, Whisper, sinusoids

    if not EMBEDDED.is_file():
        raise LabError("The embedded speech model is missing: make it with `python -m training.nano.speech`.")
    with safe_open(EMBEDDED, framework="pt") as packed:
        weights = {name: packed.get_tensor(name) for name in packed.keys()}  # noqa: SIM118 (not a dict)
        dims = ModelDimensions(**json.loads(packed.metadata()["dims"]))
    tokens, rows = weights.pop("tokens"), weights.pop("rows")
    table = torch.zeros(dims.n_vocab, dims.n_text_state, dtype=rows.dtype)
    table[:, 0] = UNUSED_TOKEN_BIAS
    table[tokens.long()] = rows
    weights["decoder.token_embedding.weight"] = table
    weights["encoder.positional_embedding"] = sinusoids(dims.n_audio_ctx, dims.n_audio_state)
    model = Whisper(dims)
    model.load_state_dict(weights)
    return model.eval()


def transcribe_samples(model: whisper.Whisper, audio: Samples, language: str | None) -> tuple[str, str]:
    """Return the text and the language of 16 kHz samples, shape (samples,). The text is "" if nobody speaks.

    `language` is a code such as "en"; None detects it.
    """
    from whisper.tokenizer import LANGUAGES

    if language is not None and language not in LANGUAGES:
        raise LabError(f"Whisper does not know the language “{language}”: use a code such as “en”, or leave it out.")
    transcribe = transcribe_window if audio.size <= WINDOW * SAMPLE_RATE else transcribe_windows
    return transcribe(model, audio, language)


def transcribe_window(model: whisper.Whisper, audio: Samples, language: str | None) -> tuple[str, str]:
    """Transcribe at most 30 s with one pass of the encoder.

    Does what `whisper.transcribe` does with one window. That function encodes again to detect the language and at each
    retry.
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
            (probabilities,) = whisper.detect_language(model, features)[1]
            language = max(probabilities, key=probabilities.get)
        options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=half)
        for temperature in TEMPERATURES:
            result = whisper.decode(model, features, replace(options, temperature=temperature))[0]
            if is_silent(result.no_speech_prob, result.avg_logprob):
                break
            if result.compression_ratio <= COMPRESSION_RATIO and result.avg_logprob >= LOG_PROBABILITY:
                return result.text.strip(), language
    return "", language


def transcribe_windows(model: whisper.Whisper, audio: Samples, language: str | None) -> tuple[str, str]:
    """Transcribe a longer recording with Whisper's own windowing.

    No window gets the text of the one before as its prompt: with it, Whisper begins to repeat itself.
    """
    result = model.transcribe(
        audio, language=language, temperature=TEMPERATURES, fp16=model.device.type == "cuda", verbose=None,
        compression_ratio_threshold=COMPRESSION_RATIO, logprob_threshold=LOG_PROBABILITY, no_speech_threshold=NO_SPEECH,
        condition_on_previous_text=False,
    )  # fmt: skip
    texts = [s["text"].strip() for s in result["segments"] if not is_silent(s["no_speech_prob"], s["avg_logprob"])]
    return " ".join(filter(None, texts)), result["language"]


def is_silent(no_speech: float, log_probability: float) -> bool:
    """Return whether a window has no speech: by Whisper's own rule, or because "no speech" is almost certain."""
    return no_speech > CERTAINLY_NO_SPEECH or (no_speech > NO_SPEECH and log_probability < LOG_PROBABILITY)
