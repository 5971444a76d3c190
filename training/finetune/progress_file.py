"""Writes the progress of a run to `progress.jsonl` in its folder, one JSON object a line, for programs that watch it.

| keys | when |
|---|---|
| `begin`, `steps`, `time` | training begins or resumes at step `begin` of `steps`: later steps in the file are void |
| `step`, `loss`, `tokens_per_second`, `seconds` | a logged step; `seconds` is the training time so far |
| `step`, `held_out_loss` | a measurement |
| `step`, `seconds` | training has ended or stopped at that step |
| `step`, `samples` | answers to held-out questions, each with `question`, `expected` and `answer` |

Losses are in nats per token. `time` is in seconds since 1970. The samples are the data's own text, so the file is not
published.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.finetune.progress import Progress

if TYPE_CHECKING:
    from training.finetune.validation.samples import Sample

FILE = "progress.jsonl"


class ProgressFile(TrainerCallback):
    """Appends to the file in the folder `out`. `progress` knows the time."""

    def __init__(self, out: Path, progress: Progress) -> None:
        self.path, self.progress = out / FILE, progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write where training begins."""
        if state.is_world_process_zero:
            self.write(begin=state.global_step, steps=state.max_steps, time=round(time.time(), 3))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the figures that the trainer logs."""
        logs: dict[str, float] = kwargs["logs"]
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            speed, seconds = logs.get("tokens_per_second"), round(self.progress.seconds, 1)
            self.write(step=state.global_step, loss=finite(logs["loss"]), tokens_per_second=speed, seconds=seconds)
        if "eval_loss" in logs:
            self.write(step=state.global_step, held_out_loss=finite(logs["eval_loss"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the last step, which may not be a logged one."""
        if state.is_world_process_zero:
            self.write(step=state.global_step, seconds=round(self.progress.seconds, 1))

    def add_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Write the sample answers of a measurement."""
        self.write(step=step, samples=[asdict(sample) for sample in samples])

    def write(self, **values: Any) -> None:
        """Append a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def finite(loss: float) -> float | None:
    """A loss, or None if it is not a finite number, which JSON does not have."""
    return loss if math.isfinite(loss) else None
