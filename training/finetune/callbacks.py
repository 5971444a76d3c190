"""Callbacks that save the state of a run, complete a saved checkpoint, and end a run that is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inference.errors import LabError
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


class StopWhenAsked(TrainerCallback):
    """On SIGTERM, ends the run after a checkpoint of the current step. A second SIGTERM ends it at once.

    It comes after the callback that completes checkpoints.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None  # the handler of before

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Listen to the signal, if Python allows it in this thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self.receive)

    def receive(self, *_: object) -> None:
        """Note the signal."""
        self.asked = True
        self.restore()

    def restore(self) -> None:
        """Handle the signal as before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """Ask the trainer to save."""
        control.should_save = control.should_save or self.asked
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """End the run. Raises LabError."""
        if self.asked and state.global_step < state.max_steps:
            raise LabError(f"Stopped at step {state.global_step:,}: the same command resumes the run.")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Handle the signal as before."""
        self.restore()
