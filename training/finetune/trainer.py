"""TRL's SFTTrainer with the lab's order of the data, exact resume, loss on a CPU, and figures in the log.

`run.py` makes and runs it. The private API that it overrides is listed in `tests/test_private_api.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer

from inference.errors import LabError
from training.finetune.base_model import compute_dtype
from training.finetune.memory_plan import Plan
from training.finetune.progress import Progress
from training.recipe import Recipe

if TYPE_CHECKING:
    import datasets


def sft_config(recipe: Recipe, out: Path, plan: Plan, run_name: str) -> SFTConfig:
    """The recipe as TRL's settings. `out` is the folder for checkpoints, `run_name` the run's name in trackio."""
    dtype = compute_dtype()
    return SFTConfig(
        output_dir=str(out),
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=plan.batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_length=recipe.max_length,
        packing=recipe.packing,
        assistant_only_loss=True,
        activation_checkpointing=plan.checkpointing,
        use_liger_kernel=plan.fused_kernels,
        torch_compile=plan.compile,
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=10,
        save_strategy="steps",
        save_steps=recipe.checkpoints.steps,
        report_to="trackio",
        project="llama-finetuning-lab",
        run_name=run_name,
        disable_tqdm=True,  # `Progress` shows more
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


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


class LabTrainer(SFTTrainer):
    """TRL's trainer with an order that survives a resume, an exact resume of 4-bit runs, and figures in the log."""

    model: torch.nn.Module
    train_dataset: datasets.Dataset

    def __init__(self, recipe: Recipe, progress: Progress, **trl_arguments: Any) -> None:
        self.recipe, self.progress = recipe, progress
        super().__init__(**trl_arguments)
        # TRL has cut the conversations to max_length by now. The label -100 means: no loss on this token.
        if not any(label != -100 for labels in self.train_dataset["labels"] for label in labels):
            raise LabError(
                f"max_length={recipe.max_length} cuts off every answer, so there is nothing to learn: set it higher."
            )
        if self.args.fp16:
            # torch scales the gradients of float16 training, and can do so for float32 weights only. TRL makes the
            # adapter of a 4-bit base bfloat16.
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data

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
        compute = SFTTrainer.compute_loss if torch.cuda.is_available() else Trainer.compute_loss
        return compute(self, model, inputs, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        batch = self.recipe.batch_size * self.recipe.gradient_accumulation
        # The state is read when an epoch begins: a resume replaces it before that.
        return LengthGroupedOrder(lengths, batch, self.recipe.seed, lambda: int(self.state.epoch or 0))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        # PEFT loads an adapter as float32, but TRL trains the adapter of a 4-bit base in bfloat16. With float32 the
        # resumed run would differ from an undisturbed one.
        dtypes = {name: weight.dtype for name, weight in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, weight in self.model.named_parameters():
            weight.data = weight.data.to(dtypes[name])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `transformers.Trainer.log`. Adds tokens/s, MFU and memory to the logged loss."""
        if "loss" in logs:
            logs |= self.progress.figures(self.state)
            self.progress.show(logs)
        super().log(logs, start_time)
