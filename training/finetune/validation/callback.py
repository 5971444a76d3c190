"""Measures the held-out loss while training, and acts on it.

All decisions follow from the log history, which a checkpoint holds. So a resumed run decides as an undisturbed one.
transformers' own EarlyStoppingCallback counts in the callback instead, and its checkpoint at the stop would train on
after a resume. Its best checkpoint is a folder that this project renames and deletes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.data.tokens import IGNORED
from training.finetune.validation.best_weights import BestWeights, Weights
from training.finetune.validation.held_out_loss import keep_quantized_weights
from training.finetune.validation.samples import Tokens, log_samples, make_samples
from training.recipe import Validation

if TYPE_CHECKING:
    from training.finetune.trainer import LabTrainer

Curve = list[tuple[int, float]]  # steps and losses in nats per token


def held_out_curve(log_history: Sequence[dict[str, Any]]) -> Curve:
    """The measured steps and their losses."""
    return [(int(entry["step"]), entry["eval_loss"]) for entry in log_history if "eval_loss" in entry]


def best_measurement(curve: Curve) -> tuple[int, float] | None:
    """The first measurement with the lowest finite loss. The one before training does not count."""
    trained = [(step, loss) for step, loss in curve if step > 0 and math.isfinite(loss)]
    return min(trained, key=lambda measured: measured[1], default=None)


def measurements_since_best(curve: Curve) -> int:
    """The number of measurements after the best one; all of them if no loss is finite."""
    best = best_measurement(curve)
    return sum(step > (best[0] if best else 0) for step, _ in curve)


def steps_between(steps: float, all_steps: int) -> int:
    """The number of steps between two measurements, from a number of steps or a share of all steps; 0: never."""
    return math.ceil(steps * all_steps) if 0 < steps < 1 else int(steps)


class MeasureHeldOut(TrainerCallback):
    """Measures every few steps and after the last one. Saves the best weights, logs samples, stops a run early.

    `questions` are tokens and labels of held-out rows: the model answers the first ones at each measurement.
    """

    def __init__(
        self, trainer: LabTrainer, settings: Validation, best: BestWeights, questions: Sequence[Tokens] = ()
    ) -> None:
        self.trainer, self.settings, self.best, self.questions = trainer, settings, best, questions

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask the trainer to measure if it is time."""
        every = steps_between(self.settings.steps, state.max_steps)
        due = every > 0 and state.global_step % every == 0
        control.should_evaluate = control.should_evaluate or due or state.global_step == state.max_steps
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Act on the newest measurement."""
        curve = held_out_curve(state.log_history)
        best, step = best_measurement(curve), state.global_step
        if self.settings.best and best and best[0] == step:
            self.best.save(self.trainer, step)
        if self.questions and state.is_world_process_zero and not self.trainer.is_fsdp_enabled:
            log_samples(self.trainer, make_samples(self.trainer, self.questions, self.settings.samples))
        patience = self.settings.patience
        if patience and step > 0 and measurements_since_best(curve) >= patience:
            control.should_training_stop = True
            control.should_save = False  # a run that resumes from here would train one step more
        return control


def measure_while_training(trainer: LabTrainer, best: BestWeights, resumed_from: Path | None) -> None:
    """Let a trainer measure the held-out loss, if it has a validation split. Keeps a checkpoint's best weights.

    The loss before training is the start of the curve; a resumed run has measured it.
    """
    if trainer.is_world_process_zero():
        best.restore(resumed_from)
    settings = trainer.recipe.validation
    rows: Any = trainer.eval_dataset
    if not rows or not settings.steps:
        return
    first: Any = rows.select(range(min(settings.samples, len(rows))))
    pairs = zip(first["input_ids"], first["labels"], strict=True) if len(first) else ()
    questions = [(ids, labels) for ids, labels in pairs if any(label != IGNORED for label in labels)]
    keep_quantized_weights(trainer.model)
    trainer.args.eval_on_start = resumed_from is None
    trainer.add_callback(MeasureHeldOut(trainer, settings, best, questions))


def choose_weights(trainer: LabTrainer, best: BestWeights, weights: Weights | None) -> Weights | None:
    """Make the best weights the result, if there are any. `weights` and the returned ones are of a base that is split
    over the processes; else the trainer's own weights change. Only the first process needs this."""
    if best.step is None:
        return weights
    if weights is not None:
        return best.load()
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    model.load_state_dict(best.load(), strict=False)
    return None


def validation_record(trainer: LabTrainer, best: BestWeights) -> dict[str, Any] | None:
    """What the run record says about the measurements; None if there are none.

    `losses` is the curve, `best` its lowest loss, `result_step` the step of the weights that are the result, and
    `stopped_early` says whether the run stopped before its last step.
    """
    curve = held_out_curve(trainer.state.log_history)
    if not curve:
        return None
    lowest = best_measurement(curve)
    rows: Any = trainer.eval_dataset
    return {
        "conversations": len(rows),
        "losses": curve,
        "best": {"step": lowest[0], "loss": lowest[1]} if lowest else None,
        "result_step": best.step or trainer.state.global_step,
        "stopped_early": trainer.state.global_step < trainer.state.max_steps,
    }
