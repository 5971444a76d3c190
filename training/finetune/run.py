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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from pyarrow.compute import list_value_length
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
from training.finetune.base_model import check_start, load_base, load_config, load_start, load_tokenizer
from training.finetune.callbacks import CompleteCheckpoint, SaveByTheClock, StopWhenAsked
from training.finetune.libraries.peft_options import check_peft_options, lora_config
from training.finetune.libraries.trl_options import check_trl_options, trainer_config, translate_trl_errors
from training.finetune.planning.fallback import (
    LastStep,
    describe_change,
    out_of_memory,
    release_memory,
    smaller_plan,
)
from training.finetune.planning.memory import has_reference
from training.finetune.planning.plan import Plan, micro_batches, started_processes
from training.finetune.planning.plan import plan as make_plan
from training.finetune.preference import PreferenceTrainer, check_objective, check_preference_options
from training.finetune.processes.first_process import on_first_process, part_processes
from training.finetune.processes.launch import check_one_gpu
from training.finetune.progress import Progress
from training.finetune.progress_file import ProgressFile
from training.finetune.result.write_model import gathered_weights, translate_write_errors, write_model
from training.finetune.resume.checkpoint_folder import Checkpoint
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
    plan: Plan | None = None,
) -> Path:
    """Train the recipe into the folder `out` and return it; without a plan, with the fastest one that fits.

    Resumes from the newest checkpoint in `out` or in the Hub repository `repo`; new checkpoints go to both. Raises
    LabError if the run can't fit (before the base is downloaded), or if its data or base is not available.
    """
    check_one_gpu()
    check_options(recipe)
    with translate_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    split = data.load(recipe.data)
    check_objective(recipe, split)
    identity = Identity(recipe.model_dump(), data.fingerprint(split.train))
    if is_finished(identity, out):
        return out
    PartialState(cpu=not torch.cuda.is_available())  # connects the processes
    checkpoints = Checkpoints(out / "checkpoints", identity, recipe.checkpoints.keep, repo, api)
    found = on_first_process(checkpoints.newest)
    recipe, plan = keep_method(recipe, plan, found)
    tokenizer = load_tokenizer(recipe)
    rows = tokenize_rows(recipe, split, tokenizer)
    plan = plan or on_first_process(lambda: make_plan(recipe, lengths=row_lengths(rows)))
    recipe = recipe.model_copy(update={"method": plan.method})
    checkpoints.identity = identity = replace(identity, recipe=recipe.model_dump())
    run = Run(recipe, identity, split, tokenizer, rows, checkpoints, out, callbacks)
    trainer, best, plan = run.train(plan, found)
    weights = gathered_weights(trainer)
    part_processes()
    if trainer.is_world_process_zero():
        write_model(trainer, choose_weights(trainer, best, weights), split, identity, best, plan, out)
        checkpoints.finish()
    return out


@dataclass(frozen=True)
class Run:
    """What is trained, and where its checkpoints are."""

    recipe: Recipe
    identity: Identity
    split: data.Split
    tokenizer: PreTrainedTokenizerBase
    rows: TokenizedSplit
    checkpoints: Checkpoints
    out: Path
    callbacks: Sequence[TrainerCallback]

    def train(self, plan: Plan, found: Checkpoint | None) -> tuple[LabTrainer, BestWeights, Plan]:
        """Train from a checkpoint to the end. If memory runs out, continue with a smaller plan.

        Raises OutOfMemory if several processes would have to do that.
        """
        while True:
            if PartialState().is_main_process:
                print(plan.describe(), file=sys.stderr)
            best, last = BestWeights(self.checkpoints.folder), LastStep()
            trainer = self.make_trainer(plan, found, best, last)
            if self.try_plan(trainer, found):
                return trainer, best, plan
            if plan.processes > 1:
                raise out_of_memory(self.recipe, plan)
            smaller = smaller_plan(self.recipe, plan)
            with translate_write_errors(self.out):
                last.save(trainer)
            print(describe_change(plan, smaller), file=sys.stderr)
            plan, found = smaller, self.checkpoints.newest()
            del trainer
            release_memory()

    def try_plan(self, trainer: LabTrainer, found: Checkpoint | None) -> bool:
        """Train to the end; False if memory ran out. The exception, which holds memory, ends here."""
        # Standard output holds only the result of a command; trackio's notes go to standard error.
        with translate_write_errors(self.out), sdpa_kernel(FUSED), redirect_stdout(sys.stderr):
            try:
                trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
            except RuntimeError as error:
                if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                    raise
                return False
            finally:
                trainer.progress.close()  # so that an error has a line of its own
        return True

    def make_trainer(self, plan: Plan, found: Checkpoint | None, best: BestWeights, last: LastStep) -> LabTrainer:
        """The trainer with the base loaded and all callbacks. Raises LabError if the base is not available."""
        recipe = self.recipe
        set_seed(recipe.seed)
        settings = trainer_config(recipe, self.checkpoints.staging, plan, f"{recipe.name}-{self.identity.short}")
        seconds = found.seconds if found else 0.0
        progress = Progress(recipe.name, plan.processes, seconds, recipe.objective == "dpo")
        trainer = load_trainer(recipe, plan, settings, self.tokenizer, self.rows, progress)
        saving = [SaveByTheClock(recipe.checkpoints.minutes), CompleteCheckpoint(self.checkpoints, progress, best)]
        for callback in (progress, ProgressFile(self.out, progress), last, *saving, *self.callbacks):
            trainer.add_callback(callback)
        if plan.processes == 1:  # several would have to agree on a step
            trainer.add_callback(StopWhenAsked())
        if "tensorboard" in recipe.report_to:
            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(self.out / "logs"))))
        measure_while_training(trainer, best, found.folder if found else None)
        return trainer


def check_options(recipe: Recipe) -> None:
    """Raise LabError if the libraries don't take the recipe's options, if the processes can't share its batch, or if no
    export can carry adapter or base."""
    check_peft_options(recipe)
    check_start(recipe)
    check_trl_options(recipe)
    check_preference_options(recipe)
    check_reports(recipe.report_to)
    check_exportable(recipe.peft)
    micro_batches(recipe, started_processes())
    check_exportable({}, load_config(recipe), recipe.base)


def keep_method(recipe: Recipe, plan: Plan | None, found: Checkpoint | None) -> tuple[Recipe, Plan | None]:
    """With `method: auto`, the recipe with a checkpoint's method, and no plan for another one."""
    if recipe.method != "auto" or not found:
        return recipe, plan
    method = found.manifest["recipe"]["method"]
    return recipe.model_copy(update={"method": method}), plan if plan and plan.method == method else None


def is_finished(identity: Identity, out: Path) -> bool:
    """Whether the folder holds this very run, completed. Raises LabError if it holds another one."""
    if not (out / "run.json").is_file():
        return False
    if difference := identity.difference(recorded_identity(read_run_record(out))):
        raise LabError(f"{out} holds another recipe's model ({difference}): choose another --out, or delete it.")
    return True


def load_trainer(
    recipe: Recipe,
    plan: Plan,
    settings: Any,
    tokenizer: PreTrainedTokenizerBase,
    rows: TokenizedSplit,
    progress: Progress,
) -> LabTrainer:
    """The trainer with the base's weights; `settings` are those of TRL's trainer.

    Raises LabError if the base is not available, or if TRL refuses the recipe's options.
    """
    make: Any = PreferenceTrainer if recipe.objective == "dpo" else SupervisedTrainer
    reference = {"ref_model": load_base(recipe, plan.attention)} if has_reference(recipe) else {}
    with translate_trl_errors(recipe):
        trainer: LabTrainer = make(
            recipe,
            progress,
            model=load_base(recipe, plan.attention, plan.sharded),
            processing_class=tokenizer,
            args=settings,
            train_dataset=rows.train,
            eval_dataset=rows.validation if len(rows.validation) else None,
            peft_config=lora_config(recipe),
            **reference,
        )
    trainer.remove_callback(PrinterCallback)
    if recipe.start:
        load_start(recipe, trainer.model)
    return trainer


def read_lengths(recipe: Recipe) -> list[int]:
    """The tokens of each conversation of a recipe. Raises LabError as `fine_tune` does, before it loads the base."""
    check_options(recipe)
    split = data.load(recipe.data)
    check_objective(recipe, split)
    return row_lengths(tokenize(recipe, split, load_tokenizer(recipe)))


def row_lengths(rows: TokenizedSplit) -> list[int]:
    """The tokens of each conversation that is learnt from or held out for the loss; of a pair, of its longer one."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids") if "chosen_ids" in rows.train.column_names else ("input_ids",)
    lengths: list[int] = []
    for part in (rows.train, rows.validation):
        table = part.with_format("arrow")
        found = [list_value_length(table[name]).to_numpy() for name in names] if len(part) else []
        if found:
            first, *others = found
            total = first + np.maximum(*others) if others else first
            lengths += total.tolist()
    return lengths


def tokenize_rows(recipe: Recipe, split: data.Split, tokenizer: PreTrainedTokenizerBase) -> TokenizedSplit:
    """The rows as tokens. The first process of a machine tokenizes them; the others read its result from the cache."""
    processes = PartialState()
    with processes.local_main_process_first():
        rows = tokenize(recipe, split, tokenizer)
    if processes.is_main_process:
        for sentence in rows.report.sentences():
            print(sentence, file=sys.stderr)
    return rows


def tokenize(recipe: Recipe, split: data.Split, tokenizer: PreTrainedTokenizerBase) -> TokenizedSplit:
    """The rows as tokens, cut at max_length unless TRL is to cut them its own way."""
    own_cut = {"packing_strategy", "truncation_mode"} & recipe.trl.keys()
    if recipe.objective == "dpo":
        return tokenize_pairs(split, tokenizer, recipe.max_length)
    return tokenize_split(split, tokenizer, None if own_cut else recipe.max_length)
