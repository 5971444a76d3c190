"""Load a Whisper model (Radford et al. 2022), or build the embedded one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from inference.errors import LabError
from inference.settings import PROJECT

if TYPE_CHECKING:
    import whisper

# Where `whisper.load_model` keeps its downloads.
WHISPER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper"
EMBEDDED = PROJECT / "adapters" / "nano-speech" / "model.safetensors"
UNUSED_TOKEN_BIAS = -60.0  # a logit that no token is sampled with


def load_whisper(name: str, device: str | None = None) -> whisper.Whisper:
    """Load a Whisper model by its name or its checkpoint's path. It computes in float16 on a GPU; on a CPU in float32,
    its encoder in bfloat16 if the CPU multiplies that. `device` None is the GPU if there is one.

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
    if model.device.type == "cpu" and multiplies_bfloat16():
        for module in model.encoder.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv1d)):  # Whisper's layer norms need float32
                module.to(torch.bfloat16)
    return model


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for it; without them bfloat16 is slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


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
