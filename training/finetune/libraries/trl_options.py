"""The settings of TRL's trainer: what the recipe's own fields say, and its `trl` mapping for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from trl import SFTConfig

from inference.errors import LabError
from inference.validation import reason_of
from training.finetune.base_model import compute_dtype
from training.finetune.libraries.option_check import check_options
from training.finetune.planning.plan import Plan
from training.recipe import Recipe

# Settings that the lab makes itself, with the recipe's field for them.
RESERVED = {
    "output_dir": "--out",
    "num_train_epochs": "epochs",
    "max_steps": "max_steps",
    "per_device_train_batch_size": "speed.micro_batch",
    "auto_find_batch_size": "speed.micro_batch",
    "gradient_accumulation_steps": "batch_size",
    "learning_rate": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_length": "max_length",
    "packing": "packing",
    "padding_free": "packing",
    "eval_packing": "packing",
    "seed": "seed",
    "data_seed": "seed",
    "gradient_checkpointing": "speed.gradient_checkpointing",
    "activation_checkpointing": "speed.gradient_checkpointing",
    "use_liger_kernel": "speed.fused_kernels",
    "torch_compile": "speed.compile",
    "save_strategy": "checkpoints.steps",
    "save_steps": "checkpoints.steps",
    "save_total_limit": "checkpoints.keep",
    "eval_strategy": "validation.steps",
    "eval_steps": "validation.steps",
    "load_best_model_at_end": "validation.best",
    "metric_for_best_model": "validation.best",
    "greater_is_better": "validation.best",
    "report_to": "report_to",
    "chat_template_path": "chat_template",
    "dataset_text_field": "data.columns",
    "assistant_only_loss": "`train` in the data's turns",
    "completion_only_loss": "`train` in the data's turns",
    "model_init_kwargs": "method",
    "hub_model_id": "--namespace",
    "push_to_hub": "--namespace",
} | dict.fromkeys(
    (
        "accelerator_config", "bf16", "bf16_full_eval", "dataloader_drop_last", "dataset_kwargs", "debug", "deepspeed",
        "disable_tqdm", "do_eval", "do_predict", "do_train", "enable_jit_checkpoint", "fp16", "fp16_full_eval", "fsdp",
        "fsdp_config", "hub_always_push", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token",
        "ignore_data_skip", "include_num_input_tokens_seen", "label_names", "length_column_name", "local_rank",
        "logging_nan_inf_filter",
        "parallelism_config", "prediction_loss_only", "project", "remove_unused_columns", "resume_from_checkpoint",
        "restore_callback_states_from_checkpoint", "run_name", "save_on_each_node", "save_only_model",
        "train_sampling_strategy", "trust_remote_code", "use_cache", "use_cpu",
    ),
    "",
)  # fmt: skip
# The values of settings that TRL checks only when the base is loaded.
CHOICES = {
    "loss_type": ("nll", "dft"),
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "truncation_mode": ("keep_start", "keep_end"),
}


def check_trl_options(recipe: Recipe) -> None:
    """Raises LabError if the recipe's `trl` mapping has a key or a value that the trainer's settings don't take."""
    if recipe.trl:
        options = recipe.trl
        if recipe.objective == "dpo" and isinstance(loss := options.get("loss_type"), str):
            options = options | {"loss_type": [loss]}  # DPOConfig takes one name as well as a list
        check_options("trl", options, config_class(recipe), RESERVED, CHOICES if recipe.objective == "sft" else {})


def config_class(recipe: Recipe) -> type[Any]:
    """The class of the settings of TRL's trainer for the recipe's objective."""
    if recipe.objective == "dpo":
        from trl import DPOConfig

        return DPOConfig
    return SFTConfig


def trainer_config(recipe: Recipe, out: Path, plan: Plan, run_name: str) -> Any:
    """The recipe as TRL's settings. `out` is the folder for checkpoints, `run_name` the run's name in trackers.

    Raises LabError if TRL refuses them, or if the optimizer or the schedule can't be made of them.
    """
    with translate_trl_errors(recipe):
        config = config_class(recipe)(**trainer_settings(recipe, out, plan, run_name) | recipe.trl)
        Trainer.get_optimizer_cls_and_kwargs(config)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
        kwargs = config.lr_scheduler_kwargs
        get_scheduler(config.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=kwargs)
    return config


@contextmanager
def translate_trl_errors(recipe: Recipe) -> Iterator[None]:
    """Turn TRL's refusal of the recipe's own options into a LabError. Without them it is the lab's own fault."""
    try:
        yield
    except (ValueError, TypeError, ImportError, NotImplementedError) as error:
        if not recipe.trl:
            raise
        raise LabError(f"TRL refuses the options in “trl” ({reason_of(error)}): change or remove them.") from error


def trainer_settings(recipe: Recipe, out: Path, plan: Plan, run_name: str) -> dict[str, Any]:
    """The settings that follow from the recipe's own fields."""
    dtype = compute_dtype()
    values: dict[str, Any] = {
        "output_dir": str(out),
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "per_device_train_batch_size": plan.micro_batch,
        "per_device_eval_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.gradient_accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "max_length": recipe.max_length,
        "activation_checkpointing": plan.checkpointing,
        "use_liger_kernel": plan.fused_kernels,
        "torch_compile": plan.compile,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,
        # What makes the CPU wait for the GPU in each micro-batch: `LabTrainer` counts tokens once a step.
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
        "include_num_input_tokens_seen": "no",
        "logging_nan_inf_filter": False,
        "logging_steps": 10,
        "save_strategy": "steps",
        "save_steps": recipe.checkpoints.steps,
        # `fine_tune` adds TensorBoard's callback, which writes into the run's folder.
        "report_to": [name for name in dict.fromkeys(recipe.report_to) if name != "tensorboard"],
        "project": "llama-finetuning-lab",
        "run_name": run_name,
        "disable_tqdm": True,  # `Progress` shows more
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }
    if plan.eight_bit_optimizer:
        values["optim"] = "paged_adamw_8bit"
    if recipe.objective == "sft":
        values |= {"packing": recipe.packing, "eval_packing": False}
        if plan.attention == "varlen" and not recipe.packing:
            values |= {"padding_free": True, "max_length": None}  # the rows are cut already
    return values
