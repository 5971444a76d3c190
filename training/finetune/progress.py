"""The progress of a run: a bar with tokens/s, MFU, memory and the time left, and the same figures for the logs.

Model FLOPs utilization (MFU; Chowdhery et al. 2022, appendix B) is the share of the device's peak FLOP/s that the
model's own arithmetic takes. Recomputed activations don't count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyarrow.compute import list_flatten, list_value_length
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import compute_flops_per_token, get_peak_flops

from training.finetune.base_model import compute_dtype

if TYPE_CHECKING:
    import datasets

# Dense 16-bit FLOP/s from NVIDIA's data sheets, for GPUs that TRL doesn't know. TRL gives the A10G the A10's figure.
PEAKS = {"A10G": 70e12, "V100": 125e12, "RTX 3090": 71e12, "RTX 4090": 165e12}


@cache
def peak_flops() -> float:
    """Peak FLOP/s of this device in the dtype that training computes in; measured if no data sheet gives it."""
    dtype, device = compute_dtype(), "cpu"
    if torch.cuda.is_available():
        device, name = "cuda", torch.cuda.get_device_name()
        known = next((peak for part, peak in PEAKS.items() if part in name), None)
        if peak := known or get_peak_flops(name, str(dtype).removeprefix("torch.")):
            return peak
    size, best = 4096 if device == "cuda" else 1536, float("inf")
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def attention_length(rows: datasets.Dataset) -> float:
    """The tokens of a token's conversation on average, for `flops_per_token`: a conversation of n tokens has n² scores.
    Packed rows count as the conversations in them."""
    lengths = conversation_lengths(rows).astype(np.float64)
    return float((lengths**2).sum() / max(lengths.sum(), 1))


def conversation_lengths(rows: datasets.Dataset) -> np.ndarray:
    """The tokens of each conversation of a trainer's rows, (n,): of packed rows those in them, of a pair both."""
    table = rows.with_format("arrow")
    if "seq_lengths" in rows.column_names:
        return np.asarray(list_flatten(table["seq_lengths"][:]))
    if "chosen_ids" in rows.column_names:
        prompt, *answers = (
            np.asarray(list_value_length(table[name][:])) for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        )
        return np.concatenate([prompt + answer for answer in answers])
    return np.asarray(list_value_length(table["input_ids"][:]))


def flops_per_token(model: PreTrainedModel, length: float, reference: bool = False) -> float:
    """FLOPs of forward and backward pass for one token of a conversation of `length` tokens; with a `reference` model,
    also those of its forward pass.

    TRL counts 6 FLOPs for each weight that multiplies (2 forward, 4 backward), as in full fine-tuning, and all scores
    of attention. A frozen weight gets no gradient of its own: 4 FLOPs. The causal mask leaves half of the scores.
    """
    products = compute_flops_per_token(model.config, 0)
    scores = (compute_flops_per_token(model.config, round(length)) - products) / 2
    forward = (products + scores) / 3 if reference else 0.0
    if all(weight.requires_grad for weight in model.parameters()):
        return products + scores + forward
    adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return products * 4 / 6 + 6 * adapter + scores + forward


class Progress(TrainerCallback):
    """The bar on the terminal, its figures, and the time that training took.

    `seconds_before` is the time spent before this run was resumed. `reference` says whether each step also computes a
    reference model.
    """

    def __init__(self, label: str, processes: int = 1, seconds_before: float = 0.0, reference: bool = False) -> None:
        self.label, self.processes, self.reference = label, processes, reference
        self.bar: tqdm | None = None
        self._flops_per_token = 0.0
        self._started_at = time.perf_counter() - seconds_before
        self._last_time, self._last_tokens = 0.0, 0
        self._shown: dict[str, float] = {}  # the newest of each logged figure

    @property
    def seconds(self) -> float:
        """Seconds of training so far, on all machines that the run used."""
        return time.perf_counter() - self._started_at

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar at the step where training begins or resumes."""
        length = attention_length(kwargs["train_dataloader"].dataset)
        self._flops_per_token = flops_per_token(kwargs["model"], length, self.reference)
        self._last_time, self._last_tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        if state.is_world_process_zero:
            steps = {"total": state.max_steps, "initial": state.global_step}
            self.bar = tqdm(**steps, desc=self.label, unit="step", mininterval=1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Close the bar, if there is one."""
        if self.bar is not None:
            self.bar.close()

    def figures(self, state: TrainerState) -> dict[str, float]:
        """Tokens/s of all processes and MFU in [0, 1] since the last call, and the peak of GPU memory so far in GB."""
        now, tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        speed = (tokens - self._last_tokens) / max(now - self._last_time, 1e-9)
        self._last_time, self._last_tokens = now, tokens
        result = {
            "tokens_per_second": round(speed, 1),
            "mfu": round(speed * self._flops_per_token / peak_flops() / self.processes, 4),
        }
        if torch.cuda.is_available():
            result["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave a measurement's time out of tokens/s and MFU."""
        started = time.perf_counter()
        yield
        self._last_time += time.perf_counter() - started

    def show(self, logs: dict[str, float]) -> None:
        """Show the newest figures beside the bar: those of training, and the held-out loss."""
        self._shown |= logs
        if self.bar is not None and "loss" in self._shown:
            speed, mfu = self._shown["tokens_per_second"], self._shown["mfu"]
            shown = [f"loss {self._shown['loss']:.3f}", f"{speed:,.0f} tokens/s", f"MFU {mfu:.1%}"]
            shown[1:1] = [f"held out {self._shown['eval_loss']:.3f}"] if "eval_loss" in self._shown else []
            if "rewards/accuracies" in self._shown:
                shown.append(f"{self._shown['rewards/accuracies']:.0%} of the chosen preferred")
            shown += [f"{self._shown['memory_gb']:.1f} GB"] if "memory_gb" in self._shown else []
            self.bar.set_postfix_str(", ".join(shown))
