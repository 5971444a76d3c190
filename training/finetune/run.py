"""Supervised fine-tuning: a recipe in, a model folder out. `python -m training sft RECIPE`

TRL's SFTTrainer trains, PEFT makes the adapter, bitsandbytes holds the base in 4 bits (QLoRA, Dettmers et al. 2023).
The loss is on the assistant's tokens only. The folder gets the adapter or the complete model, `run.json` (the run
record) and `loss.png`. `training/export` adds GGUF files and `training/evaluation` adds figures.

The same command resumes a stopped run (see `resume/`). Under `accelerate launch`, several processes share the
recipe's batch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch.nn.attention import sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback

from inference.engines.pytorch.kv_cache import FUSED
from inference.errors import LabError
from training import data
from training.data.training_template import training_template
from training.finetune import memory_plan
from training.finetune.base_model import load_base, load_tokenizer, lora_config
from training.finetune.callbacks import CompleteCheckpoint, SaveByTheClock
from training.finetune.progress import Progress
from training.finetune.resume.checkpoints import Checkpoints
from training.finetune.resume.identity import Identity, recorded_identity
from training.finetune.trainer import LabTrainer, sft_config
from training.plots import draw_loss
from training.recipe import Recipe
from training.run_record import device_name, read_run_record, write_run_record

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def fine_tune(
    recipe: Recipe,
    out: Path,
    api: HfApi | None = None,
    repo: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train the recipe into the folder `out` and return it.

    Resumes from the newest checkpoint in `out` or in the Hub repository `repo`; new checkpoints go to both. Raises
    LabError if the run can't fit (before the base is downloaded), or if its data or base is not available.
    """
    set_seed(recipe.seed)
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    plan = memory_plan.plan(recipe)
    split = data.load(recipe.data)
    identity = Identity(recipe.model_dump(), data.fingerprint(split.train))
    if is_finished(identity, out):
        return out
    checkpoints = Checkpoints(out / "checkpoints", identity, recipe.checkpoints.keep, repo, api)
    found = checkpoints.newest()
    progress = Progress(recipe.name, recipe.max_length, plan.processes, found.seconds if found else 0.0)
    trainer = make_trainer(recipe, plan, split, checkpoints, progress)
    for callback in (TensorBoardCallback(SummaryWriter(str(out / "logs"))), *callbacks):
        trainer.add_callback(callback)
    # Standard output holds only the result of a command; trackio's notes go to standard error.
    with translate_write_errors(out), sdpa_kernel(FUSED), redirect_stdout(sys.stderr):
        trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
    # Under FSDP each process holds a part of the weights.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        with translate_write_errors(out):
            write_model(trainer, weights, split, identity, out)
        checkpoints.finish()
    return out


@contextmanager
def translate_write_errors(out: Path) -> Iterator[None]:
    """Turn the exceptions of writing into a run's folder into a LabError."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of files
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise LabError(f"{out} can't be written ({reason}): make room on the disk, or choose another --out.") from error


def is_finished(identity: Identity, out: Path) -> bool:
    """Whether the folder holds this very run, completed. Raises LabError if it holds another one."""
    if not (out / "run.json").is_file():
        return False
    if difference := identity.difference(recorded_identity(read_run_record(out))):
        raise LabError(f"{out} holds another recipe's model ({difference}): choose another --out, or delete it.")
    return True


def make_trainer(
    recipe: Recipe, plan: memory_plan.Plan, split: data.Split, checkpoints: Checkpoints, progress: Progress
) -> LabTrainer:
    """The trainer with base, tokenizer and data loaded. Raises LabError if the base is not available."""
    tokenizer = load_tokenizer(recipe)
    tokenizer.chat_template = training_template(tokenizer)
    trainer = LabTrainer(
        recipe,
        progress,
        model=load_base(recipe, plan.checkpointing),
        processing_class=tokenizer,
        args=sft_config(recipe, checkpoints.staging, plan, f"{recipe.name}-{checkpoints.identity.short}"),
        train_dataset=split.train.select_columns(["messages"]),
        peft_config=lora_config(recipe),
        callbacks=[
            progress,
            SaveByTheClock(recipe.checkpoints.minutes),
            CompleteCheckpoint(checkpoints, progress),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def write_model(
    trainer: LabTrainer, weights: dict[str, torch.Tensor] | None, split: data.Split, identity: Identity, out: Path
) -> None:
    """Write the adapter or model, the loss curve, and last the run record: it marks a run as done."""
    recipe, model = trainer.recipe, trainer.accelerator.unwrap_model(trainer.model)
    if recipe.method != "full":
        # The adapter names its base as the recipe does: a path of this machine means nothing on another.
        model.peft_config["default"].base_model_name_or_path = recipe.base
    model.save_pretrained(out, state_dict=weights)
    if recipe.method == "full":
        # The base's own tokenizer: the trainer's has marks in its chat template that only training needs.
        load_tokenizer(recipe).save_pretrained(out)
    losses = [(int(entry["step"]), entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    draw_loss({recipe.name: losses}, out / "loss.png")
    run_record = {
        "recipe": recipe.model_dump(),
        "data": {"examples": len(split.train), "sha256": identity.data},
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": round(trainer.progress.seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "device": device_name(),
        "processes": trainer.args.world_size,
        "losses": losses,
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_run_record(out, run_record)
