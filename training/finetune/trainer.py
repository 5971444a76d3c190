"""TRL's trainers with the lab's order of the data, exact resume, and figures in the log; and its SFTTrainer.

`preference.py` has the trainer for pairs of answers. `run.py` makes and runs them. The private API that they override
is listed in `tests/test_private_api.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyarrow.compute import list_value_length
from transformers import Trainer
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from training.data.tokens import IGNORED
from training.finetune.adapter import prepare_adapter
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


class LearntPositions:
    """A collator that also says which positions of a row without padding are learnt, so that the model computes no
    logits for the others. The CPU knows them; the GPU would have to be waited for."""

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """The batch. `logits_to_keep` (n,) are the positions before learnt tokens, `shift_labels` (1, n) the tokens."""
        batch = self.collator(rows)
        if len(batch["input_ids"]) == 1:
            following = batch["labels"][0, 1:]
            learnt = (following != IGNORED).nonzero().flatten()
            keep = learnt if len(learnt) else torch.zeros(1, dtype=torch.int64)  # a loss needs a position
            batch |= {"logits_to_keep": keep, "shift_labels": following[keep][None]}
        return batch


class LabTrainer(Trainer):
    """What the trainers of all objectives add to TRL's: an order that survives a resume, an exact resume of 4-bit runs,
    and figures in the log. A subclass names TRL's trainer as its second base."""

    model: torch.nn.Module
    train_dataset: datasets.Dataset

    def __init__(self, recipe: Recipe, progress: Progress, **trl_arguments: Any) -> None:
        self.recipe, self.progress = recipe, progress
        super().__init__(**trl_arguments)
        prepare_adapter(self.model)

    def lengths(self, rows: datasets.Dataset) -> list[int]:
        """The tokens of each row."""
        lengths: list[int] = list_value_length(rows.with_format("arrow")["input_ids"][:]).to_pylist()
        return lengths

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        lengths = self.lengths(self.train_dataset if train_dataset is None else train_dataset)
        batch = self.recipe.batch_size
        # The state is read when an epoch begins: a resume replaces it before that.
        return LengthGroupedOrder(lengths, batch, self.recipe.seed, lambda: int(self.state.epoch or 0))

    def get_batch_samples(self, *args: Any) -> tuple[list[Any], torch.Tensor | int | None]:
        """See `transformers.Trainer.get_batch_samples`. Counts the tokens of a step: transformers would wait for the
        GPU in each micro-batch to do so. A row without padding is as long as its shape says."""
        batches, learnt = super().get_batch_samples(*args)
        masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
        count: Any = sum(mask.sum() for mask in masks) if masks else sum(b["input_ids"].numel() for b in batches)
        if self.args.world_size > 1:
            count = self.accelerator.reduce(torch.as_tensor(count, device=self.args.device), "sum")
        self.state.num_input_tokens_seen += int(count)
        return batches, learnt

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing: `Progress` counts them, and transformers would walk through all weights in each micro-batch."""
        return 0

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


def uses_fused_head() -> bool:
    """Whether TRL's fused head computes the loss where Liger does not: with a GPU, to save memory."""
    return torch.cuda.is_available()


class SupervisedTrainer(LabTrainer, SFTTrainer):
    """TRL's SFTTrainer on the rows of `training/data/tokens.py`, without its figures of each micro-batch (entropy,
    accuracy), for which it waits for the GPU."""

    def __init__(self, recipe: Recipe, progress: Progress, **trl_arguments: Any) -> None:
        super().__init__(recipe, progress, **trl_arguments)
        args: Any = self.args
        self.is_nll = args.loss_type == "nll" and not args.label_smoothing_factor
        self.loss_options: dict[str, bool] = {}  # how the model computes its loss
        if self.is_nll and args.use_liger_kernel and not self.is_fsdp_enabled:
            # One pass computes the loss and its gradient; TRL's head computes all logits twice.
            apply_liger_kernel(self.model, args.liger_kernel_config | {"fused_linear_cross_entropy": True})
            args.use_liger_kernel = False  # it is done
            self.loss_options = {"skip_logits": True}
        elif uses_fused_head():
            self.loss_options = {"fused_lm_head": True}
        if self.is_nll and "fused_lm_head" not in self.loss_options:
            self.data_collator = LearntPositions(self.data_collator)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """See `transformers.Trainer.compute_loss`. The model computes the loss itself unless TRL has another one."""
        if not self.is_nll:
            return SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        return Trainer.compute_loss(self, model, inputs | self.loss_options, return_outputs, num_items_in_batch)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss as a mean over tokens: transformers takes the mean of the batches' means."""
        with self.progress.paused(), evaluating(self.model):
            metrics = {"eval_loss": held_out_loss(self)}
            self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
