"""TRL's trainers with the lab's order of the data, exact resume, and figures in the log; and its SFTTrainer.

`preference.py` has the trainer for pairs of answers. `run.py` makes and runs them. The private API that they override
is listed in `tests/test_private_api.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from training.finetune.progress import Progress
from training.finetune.validation.held_out_loss import evaluating, held_out_loss
from training.recipe import Recipe

if TYPE_CHECKING:
    import datasets


class LengthGroupedOrder(torch.utils.data.Sampler[int]):
    """The order of the conversations in an epoch: those of similar length are together, so that little is padding.

    The order depends only on the seed, the epoch and the global batch. It is the same after a resume and for any number
    of processes. `lengths` are in tokens, `batch` is in conversations; `epoch` is called when an epoch begins.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class LabTrainer(Trainer):
    """What the trainers of all objectives add to TRL's: an order that survives a resume, an exact resume of 4-bit runs,
    and figures in the log. A subclass names TRL's trainer as its second base."""

    model: torch.nn.Module
    train_dataset: datasets.Dataset

    def __init__(self, recipe: Recipe, progress: Progress, **trl_arguments: Any) -> None:
        self.recipe, self.progress = recipe, progress
        super().__init__(**trl_arguments)
        # TRL makes the adapter of a 4-bit base bfloat16, which would round most updates away at low learning rates.
        for weight in self.model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data

    def lengths(self, rows: datasets.Dataset) -> list[int]:
        """The tokens of each row."""
        return [len(ids) for ids in rows["input_ids"]]

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        lengths = self.lengths(self.train_dataset if train_dataset is None else train_dataset)
        batch = self.recipe.batch_size * self.recipe.gradient_accumulation
        # The state is read when an epoch begins: a resume replaces it before that.
        return LengthGroupedOrder(lengths, batch, self.recipe.seed, lambda: int(self.state.epoch or 0))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `transformers.Trainer.evaluate`. Random states stay as they are, so a measurement changes no training."""
        with torch.random.fork_rng(), self.progress.paused():
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `transformers.Trainer.log`. Adds tokens/s, MFU and memory to the logged loss."""
        if "loss" in logs:
            logs |= self.progress.figures(self.state)
        super().log(logs, start_time)  # TRL adds its own figures to `logs`
        self.progress.show(logs)


class SupervisedTrainer(LabTrainer, SFTTrainer):
    """TRL's SFTTrainer on the rows of `training/data/tokens.py`."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """See `transformers.Trainer.compute_loss`.

        On a CPU, transformers computes the loss. The result is the same, but TRL's fused loss saves memory with Triton
        kernels; without them it loops over chunks and also scores prompts and padding, a quarter of a step's time.
        """
        own = torch.cuda.is_available() or getattr(self.args, "loss_type", "nll") != "nll"
        compute = SFTTrainer.compute_loss if own else Trainer.compute_loss
        return compute(self, model, inputs, return_outputs, num_items_in_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss as a mean over tokens: transformers takes the mean of the batches' means."""
        with self.progress.paused(), evaluating(self.model):
            metrics = {"eval_loss": held_out_loss(self)}
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
