"""Supervised fine-tuning: a recipe in, a model folder out. `python -m training sft RECIPE`

TRL's SFTTrainer trains, PEFT makes the adapter, bitsandbytes holds the base in 4 bits (QLoRA, Dettmers et al. 2023).
The loss is on the assistant's tokens only. The folder gets the adapter or the complete model, `run.json` (the run
record) and `loss.png`. `training/export` adds GGUF files and `training/evaluation` adds figures.

The same command resumes a stopped run (see `resume/`). Under `accelerate launch`, several processes share the
recipe's batch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from torch.nn.attention import sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback

from inference.engines.pytorch.kv_cache import FUSED
from inference.errors import LabError
from training import data
from training.data.pair_tokens import tokenize_pairs
from training.data.tokens import TokenizedSplit, tokenize_split
from training.export.exportable import check_exportable
from training.finetune import memory_plan
from training.finetune.base_model import load_base, load_config, load_tokenizer
from training.finetune.callbacks import CompleteCheckpoint, SaveByTheClock
from training.finetune.libraries.peft_options import check_peft_options, lora_config
from training.finetune.libraries.trl_options import check_trl_options, trainer_config, translate_trl_errors
from training.finetune.preference import check_objective, check_preference_options, preference_trainer
from training.finetune.processes.first_process import on_first_process, part_processes
from training.finetune.processes.launch import check_one_gpu
from training.finetune.progress import Progress
from training.finetune.result.write_model import gathered_weights, translate_write_errors, write_model
from training.finetune.resume.checkpoints import Checkpoints
from training.finetune.resume.identity import Identity, recorded_identity
from training.finetune.trainer import LabTrainer, SupervisedTrainer
from training.finetune.validation.best_weights import BestWeights
from training.finetune.validation.callback import choose_weights, measure_while_training
from training.finetune.validation.reports import check_reports
from training.recipe import Recipe
from training.run_record import read_run_record

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from transformers import PreTrainedTokenizerBase


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
    check_one_gpu()
    set_seed(recipe.seed)
    check_options(recipe)
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    plan = memory_plan.plan(recipe)
    check_exportable({}, load_config(recipe), recipe.base)
    split = data.load(recipe.data)
    check_objective(recipe, split)
    identity = Identity(recipe.model_dump(), data.fingerprint(split.train))
    if is_finished(identity, out):
        return out
    checkpoints = Checkpoints(out / "checkpoints", identity, recipe.checkpoints.keep, repo, api)
    settings = trainer_config(recipe, checkpoints.staging, plan, f"{recipe.name}-{identity.short}")
    found = on_first_process(checkpoints.newest)
    seconds = found.seconds if found else 0.0
    progress = Progress(recipe.name, recipe.max_length, plan.processes, seconds, recipe.objective == "dpo")
    best = BestWeights(checkpoints.folder)
    trainer = make_trainer(recipe, plan, settings, split, [CompleteCheckpoint(checkpoints, progress, best)], progress)
    if "tensorboard" in recipe.report_to:
        trainer.add_callback(TensorBoardCallback(SummaryWriter(str(out / "logs"))))
    for callback in callbacks:
        trainer.add_callback(callback)
    measure_while_training(trainer, best, found.folder if found else None)
    # Standard output holds only the result of a command; trackio's notes go to standard error.
    with translate_write_errors(out), sdpa_kernel(FUSED), redirect_stdout(sys.stderr):
        trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
    weights = gathered_weights(trainer)
    part_processes()
    if trainer.is_world_process_zero():
        write_model(trainer, choose_weights(trainer, best, weights), split, identity, best, out)
        checkpoints.finish()
    return out


def check_options(recipe: Recipe) -> None:
    """Raise LabError if the libraries don't take the recipe's options, or if no export can carry its adapter."""
    check_peft_options(recipe)
    check_trl_options(recipe)
    check_preference_options(recipe)
    check_reports(recipe.report_to)
    check_exportable(recipe.peft)


def is_finished(identity: Identity, out: Path) -> bool:
    """Whether the folder holds this very run, completed. Raises LabError if it holds another one."""
    if not (out / "run.json").is_file():
        return False
    if difference := identity.difference(recorded_identity(read_run_record(out))):
        raise LabError(f"{out} holds another recipe's model ({difference}): choose another --out, or delete it.")
    return True


def make_trainer(
    recipe: Recipe,
    plan: memory_plan.Plan,
    settings: Any,
    split: data.Split,
    callbacks: Sequence[TrainerCallback],
    progress: Progress,
) -> LabTrainer:
    """The trainer with base, tokenizer and data loaded; `settings` are those of TRL's trainer.

    Raises LabError if the base is not available, or if its chat template does not fit the data. The weights are loaded
    last.
    """
    tokenizer = load_tokenizer(recipe)
    rows = tokenize_rows(recipe, split, tokenizer)
    make = preference_trainer if recipe.objective == "dpo" else SupervisedTrainer
    with translate_trl_errors(recipe):
        trainer = make(
            recipe,
            progress,
            model=load_base(recipe, plan.sharded),
            processing_class=tokenizer,
            args=settings,
            train_dataset=rows.train,
            eval_dataset=rows.validation if len(rows.validation) else None,
            peft_config=lora_config(recipe),
            callbacks=[progress, SaveByTheClock(recipe.checkpoints.minutes), *callbacks],
        )
    trainer.remove_callback(PrinterCallback)
    return trainer


def tokenize_rows(recipe: Recipe, split: data.Split, tokenizer: PreTrainedTokenizerBase) -> TokenizedSplit:
    """The rows as tokens. The first process of a machine tokenizes them; the others read its result from the cache."""
    own_cut = {"packing_strategy", "truncation_mode"} & recipe.trl.keys()  # TRL then cuts the rows its own way
    processes = PartialState()
    with processes.local_main_process_first():
        if recipe.objective == "dpo":
            rows = tokenize_pairs(split, tokenizer, recipe.max_length)
        else:
            rows = tokenize_split(split, tokenizer, None if own_cut else recipe.max_length)
    if processes.is_main_process:
        for sentence in rows.report.sentences():
            print(sentence, file=sys.stderr)
    return rows
