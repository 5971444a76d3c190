"""What a run does when its memory runs out in spite of its plan: it continues with a smaller one.

One process saves its last complete step first, so that no step is lost. Several processes can't: those that have not
failed wait for the one that has. They end, and `processes/launch.py` starts them again from the newest checkpoint.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from inference.errors import LabError
from training.finetune.base_model import load_config
from training.finetune.planning.cards import this_machine
from training.finetune.planning.memory import memory_needed
from training.finetune.planning.plan import Plan

if TYPE_CHECKING:
    from training.finetune.trainer import LabTrainer
    from training.recipe import Recipe


class OutOfMemory(LabError):
    """The memory of a card ran out in a step."""


def out_of_memory(recipe: Recipe, plan: Plan) -> OutOfMemory:
    """The error for a run that nothing here can repeat with a smaller plan."""
    size = plan.micro_batch
    fewer = f"add speed.micro_batch={largest_divisor(size, size // 2)}" if size > 1 else "choose a larger card"
    return OutOfMemory(f"{recipe.name} ran out of memory with {size} conversations at once: {fewer}.")


def smaller_plan(recipe: Recipe, plan: Plan) -> Plan:
    """The next smaller plan: half of the micro-batch, then recomputed activations. Raises LabError if there is none.

    The step stays the same, so that a run can change to it at any step.
    """
    if plan.micro_batch > 1:
        size = largest_divisor(plan.micro_batch, plan.micro_batch // 2)
        accumulation = plan.micro_batch * plan.gradient_accumulation // size
        smaller = replace(plan, micro_batch=size, gradient_accumulation=accumulation)
    elif not plan.checkpointing:
        smaller = replace(plan, checkpointing=True)
    else:
        raise LabError(
            f"{recipe.name} ran out of memory with one conversation at once and recomputed activations: add "
            "memory=low, method=qlora or a smaller max_length, or choose a larger card."
        )
    need = memory_needed(recipe, load_config(recipe), this_machine(), smaller, plan.longest)
    return replace(smaller, need=need, out_of_memory=(*plan.out_of_memory, plan.split))


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    return next(size for size in range(most, 0, -1) if number % size == 0)


def describe_change(before: Plan, after: Plan) -> str:
    """The sentence for the terminal."""
    how = "with recomputed activations" if after.checkpointing > before.checkpointing else f"as {after.split}"
    return f"Out of memory with {before.split}: the run resumes from its last saved step {how}, which learns the same."


class LastStep(TrainerCallback):
    """Knows whether the weights are those of a complete step, and the tokens that were learnt by then."""

    def __init__(self) -> None:
        self.complete, self.tokens = False, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run begins or resumes."""
        self.complete, self.tokens = True, state.num_input_tokens_seen

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The optimizer begins to change the weights, one after the other."""
        self.complete = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All weights are changed."""
        self.complete, self.tokens = True, state.num_input_tokens_seen

    def save(self, trainer: LabTrainer) -> None:
        """Save a checkpoint of the last complete step, if the weights are still those."""
        trainer.model.zero_grad()
        release_memory()
        if self.complete and trainer.state.global_step:
            trainer.state.num_input_tokens_seen = self.tokens
            trainer._save_checkpoint(trainer.model, trial=None)
            trainer.callback_handler.on_save(trainer.args, trainer.state, trainer.control)


def release_memory() -> None:
    """Free the memory of objects that nothing else refers to, such as a trainer and its model, which refer to each
    other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
