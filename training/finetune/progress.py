"""What one sees of a run while it trains: the bar with tokens/s, MFU, memory and the time left.

Model FLOPs utilization (MFU; Chowdhery et al. 2022, appendix B) is the share of the device's peak that the model's own
arithmetic takes: 6 FLOPs per trained parameter and token, 4 where the parameter is frozen (no gradient of its own), and
12 · layers · width · length for attention's scores, half of them masked. Recomputed activations don't count.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Dense 16-bit FLOP/s from the makers' data sheets. Any other device is measured.
PEAKS = {
    "T4": 65e12, "V100": 125e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "A100": 312e12,
    "RTX 3090": 71e12, "RTX 4090": 165e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12,
}  # fmt: skip


@cache
def peak_flops() -> float:
    """FLOP/s of this device in the type that training computes in; a CPU's by a product of two matrices."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known = [peak for part, peak in sorted(PEAKS.items(), key=lambda item: -len(item[0])) if part in name]
        if known:
            return known[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" or torch.cpu._is_avx512_bf16_supported() else torch.float32
    size, best = 4096 if device == "cuda" else 1536, float("inf")
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    for _ in range(5):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def flops_per_token(model: PreTrainedModel, length: float) -> float:
    """Of forward and backward, for conversations of about `length` tokens."""
    config = model.config
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # A 4-bit weight holds two numbers a byte; bitsandbytes keeps the true shape aside.
    frozen = sum(
        quant.shape.numel() if (quant := getattr(p, "quant_state", None)) else p.numel()
        for name, p in model.named_parameters()
        if not p.requires_grad and "embed_tokens" not in name
    )
    if config.tie_word_embeddings and trained < frozen:
        frozen += config.vocab_size * config.hidden_size  # looked up at the start, multiplied at the end
    attention = 12 * config.num_hidden_layers * config.hidden_size * length / 2
    return 6 * trained + 4 * frozen + attention


class Progress(TrainerCallback):
    """A bar on the terminal, and its figures for the logs."""

    def __init__(self, label: str, length: float, processes: int = 1) -> None:
        self.label, self.length, self.processes = label, length, processes
        self.bar: tqdm | None = None
        self.flops = 0.0
        self._mark = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the bar where the run goes on."""
        self.flops = flops_per_token(kwargs["model"], self.length)
        self._mark = (time.perf_counter(), int(state.num_input_tokens_seen))
        if state.is_world_process_zero:
            done, total = state.global_step, state.max_steps
            self.bar = tqdm(total=total, initial=done, desc=self.label, unit="step", mininterval=1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """One more step."""
        if self.bar is not None:
            self.bar.update(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def figures(self, state: TrainerState) -> dict[str, float]:
        """Since the last call: tokens/s of all processes together, MFU in [0, 1], the peak of memory so far in GB."""
        now, tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        before, tokens_before = self._mark
        self._mark = (now, tokens)
        speed = (tokens - tokens_before) / max(now - before, 1e-9)
        result = {"tokens_per_second": round(speed, 1)}
        result["mfu"] = round(speed * self.flops / peak_flops() / self.processes, 4)
        if torch.cuda.is_available():
            result["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        return result

    def show(self, logs: dict[str, float]) -> None:
        """The newest figures beside the bar."""
        if self.bar is not None and "loss" in logs:
            shown = [f"loss {logs['loss']:.3f}", f"{logs['tokens_per_second']:,.0f} tokens/s", f"MFU {logs['mfu']:.1%}"]
            shown += [f"{logs['memory_gb']:.1f} GB"] if "memory_gb" in logs else []
            self.bar.set_postfix_str(", ".join(shown))
