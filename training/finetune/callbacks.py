"""Callbacks that decide when a run saves its state, and that complete a saved checkpoint."""

from __future__ import annotations

import time

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.finetune.progress import Progress
from training.finetune.resume.checkpoints import Checkpoints
from training.finetune.validation.best_weights import BestWeights


class SaveByTheClock(TrainerCallback):
    """Saves a checkpoint when the last one is `minutes` old, by the first process's clock."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.saved_at = minutes, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Ask the trainer to save if it is time."""
        due = torch.tensor(time.monotonic() - self.saved_at > 60 * self.minutes)
        if args.world_size > 1:
            due = due.to(args.device)
            torch.distributed.broadcast(due, 0)
        control.should_save = control.should_save or bool(due)
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Restart the clock."""
        self.saved_at = time.monotonic()


class CompleteCheckpoint(TrainerCallback):
    """Completes each checkpoint that the trainer has written: best weights, manifest, final name, copy on the Hub."""

    def __init__(self, checkpoints: Checkpoints, progress: Progress, best: BestWeights) -> None:
        self.checkpoints, self.progress, self.best = checkpoints, progress, best

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Wait until every process has written its files; the first process then completes the checkpoint."""
        processes = PartialState()
        processes.wait_for_everyone()
        if state.is_world_process_zero:
            self.best.add_to(self.checkpoints.staging / f"checkpoint-{state.global_step}")
            self.checkpoints.complete(state.global_step, self.progress.seconds)
        processes.wait_for_everyone()
