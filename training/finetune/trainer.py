"""Supervised fine-tuning: a recipe in, a model folder out. `python -m training sft RECIPE`

TRL's SFTTrainer trains, PEFT adapts, bitsandbytes holds the base in 4 bits (QLoRA, Dettmers et al. 2023). The loss is
on the assistant's tokens only. The folder gets the adapter (or the whole model), `run.json` (the run record) and
`loss.png`; GGUF files are `export.py`'s work, figures `evaluate.py`'s.

The same command goes on where an earlier one was stopped (`checkpoints.py`), and under `accelerate launch` on several
processes, which share the recipe's batch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from safetensors import SafetensorError
from torch.nn.attention import sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)
from transformers.integrations import TensorBoardCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTConfig, SFTTrainer

from inference.engines.pytorch.rows import FUSED
from inference.errors import LabError
from training import data
from training.data.data_card import training_template
from training.finetune import memory_plan
from training.finetune.attention import PACKED
from training.finetune.checkpoints import Checkpoints, Identity, recorded
from training.finetune.progress import Progress
from training.plots import draw_loss
from training.recipe import Recipe
from training.run_record import device_name, read_run_record, write_run_record

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def compute_dtype() -> torch.dtype:
    """What this machine computes in: bfloat16 where it is fast, else float16 on a GPU and float32 on a CPU. A T4 has
    bfloat16 only in emulation."""
    if not torch.cuda.is_available():
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def attention(packing: bool) -> str:
    """How attention is computed. On a GPU by torch's fused kernels, for packed rows conversation by conversation where
    the GPU is new enough. On a CPU the plain form was faster for single conversations, most of all backward, and the
    fused one for long packed rows."""
    if not torch.cuda.is_available():
        return "sdpa" if packing else "eager"
    return PACKED if packing and compute_dtype() is torch.bfloat16 else "sdpa"


def load_base(recipe: Recipe, checkpointing: bool) -> PreTrainedModel:
    """The base model: 4-bit NF4 with double quantization for QLoRA, in the machine's own type for LoRA, in float32 for
    full fine-tuning, whose updates are too small for 16 bits."""
    dtype = compute_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    with memory_plan.translate_base_errors(recipe.base):
        model = AutoModelForCausalLM.from_pretrained(
            recipe.base_location,
            dtype=torch.float32 if recipe.method == "full" else dtype,
            quantization_config=quantization if recipe.method == "qlora" else None,
            device_map={"": local} if torch.cuda.is_available() else "cpu",
            attn_implementation=attention(recipe.packing),
        )
    if recipe.method == "qlora":
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    return model


def trainer_settings(recipe: Recipe, staging: Path, plan: memory_plan.Plan, run: str) -> SFTConfig:
    """The recipe in TRL's words."""
    dtype = compute_dtype()
    return SFTConfig(
        output_dir=str(staging),
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
        run_name=run,
        disable_tqdm=True,  # `Progress` shows more
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


class Order(torch.utils.data.Sampler[int]):
    """Each epoch's order: conversations of like length together, so that little is padding. It depends on the seed, the
    epoch and the global batch alone: the same after a resume, and for any number of processes."""

    def __init__(self, lengths: list[int], batch: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class LabTrainer(SFTTrainer):
    """TRL's trainer with checkpoints that are whole or not there, an order that survives a resume, and figures.

    On a CPU the loss is transformers' own: TRL's fused one saves memory by Triton kernels, and without those loops over
    chunks and scores the prompts and the padding as well, which took a quarter of a step. The loss is the same.
    """

    def __init__(self, recipe: Recipe, checkpoints: Checkpoints, progress: Progress, before: float, **of_trl) -> None:
        self.recipe, self.checkpoints, self.progress, self.before = recipe, checkpoints, progress, before
        self.started = time.perf_counter()
        super().__init__(**of_trl)
        # Here conversations are cut to max_length. The loss is not on -100.
        if not any(label != -100 for labels in self.train_dataset["labels"] for label in labels):
            raise LabError(f"max_length={recipe.max_length} leaves nothing to learn of a conversation: set it higher.")
        if self.args.fp16:
            # float16's gradients are scaled, for which torch knows float32 weights only; TRL makes a QLoRA's bfloat16.
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data

    @property
    def seconds(self) -> float:
        """What training took so far, on all the machines that it ran on."""
        return self.before + time.perf_counter() - self.started

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor | tuple:
        """See `transformers.Trainer.compute_loss`."""
        compute = SFTTrainer.compute_loss if torch.cuda.is_available() else Trainer.compute_loss
        return compute(self, model, inputs, return_outputs, num_items_in_batch)

    def _get_train_sampler(self, train_dataset: object = None) -> torch.utils.data.Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        batch = self.recipe.batch_size * self.recipe.gradient_accumulation
        # Looked up when an epoch begins: a resume replaces the state before that.
        return Order(lengths, batch, self.args.data_seed, lambda: int(self.state.epoch or 0))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: PreTrainedModel | None = None) -> None:
        # PEFT loads an adapter as float32, where TRL trains a 4-bit base's in bfloat16: another run from there on.
        types = {name: weight.dtype for name, weight in self.model.named_parameters()}
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for name, weight in self.model.named_parameters():
            weight.data = weight.data.to(types[name])

    def _save_checkpoint(self, model: PreTrainedModel, trial: object) -> None:
        with saving(self.checkpoints.folder.parent):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            self.checkpoints.complete(self.state.global_step, self.seconds)
        self.accelerator.wait_for_everyone()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `transformers.Trainer.log`; with tokens/s, MFU and memory."""
        if "loss" in logs:
            logs |= self.progress.figures(self.state)
            self.progress.show(logs)
        super().log(logs, start_time)


class SaveByTheClock(TrainerCallback):
    """A checkpoint after so many minutes without one; the first process's clock counts."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.last = minutes, time.monotonic()

    def on_step_end(
        self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        """See `transformers.TrainerCallback`."""
        due = torch.tensor(time.monotonic() - self.last > 60 * self.minutes)
        if args.world_size > 1:
            due = due.to(args.device)
            torch.distributed.broadcast(due, 0)
        control.should_save = control.should_save or bool(due)
        return control

    def on_save(self, args: SFTConfig, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """The clock starts anew."""
        self.last = time.monotonic()


def tokenizer_of(recipe: Recipe) -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    with memory_plan.translate_base_errors(recipe.base):
        return AutoTokenizer.from_pretrained(recipe.base_location)


def adapter_of(recipe: Recipe) -> LoraConfig | None:
    """The recipe's LoRA in PEFT's words; None for full fine-tuning."""
    if recipe.method == "full":
        return None
    return LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@contextmanager
def saving(out: Path) -> Iterator[None]:
    """Turn what keeps a run's folder from being written into a sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # where torch writes its files
            raise
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise LabError(f"{out} can't be written ({reason}): make room on the disk, or choose another --out.") from error


def finished(recipe: Recipe, identity: Identity, out: Path) -> bool:
    """Whether the folder holds this very run, done. Raises LabError where it holds another one."""
    if not (out / "run.json").is_file():
        return False
    if difference := identity.difference(recorded(read_run_record(out))):
        raise LabError(f"{out} holds another recipe's model ({difference}): choose another --out, or delete it.")
    return True


def fine_tune(
    recipe: Recipe,
    out: Path,
    api: HfApi | None = None,
    repo: str | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Train the recipe into the folder `out` and return it. Goes on from the newest checkpoint in it or, where `repo`
    names one, in that Hub repository; new ones go to both. Raises LabError before the base is fetched where it can't
    memory_plan."""
    set_seed(recipe.seed)
    with saving(out):
        out.mkdir(parents=True, exist_ok=True)
    plan = memory_plan.plan(recipe)
    split = data.load(recipe.data)
    identity = Identity(recipe.model_dump(), data.fingerprint(split.train["messages"]))
    if finished(recipe, identity, out):
        return out
    checkpoints = Checkpoints(out / "checkpoints", identity, recipe.checkpoints.keep, repo, api)
    found = checkpoints.newest()
    tokenizer = tokenizer_of(recipe)
    tokenizer.chat_template = training_template(tokenizer)
    progress = Progress(recipe.name, recipe.max_length, plan.processes)
    trainer = LabTrainer(
        recipe,
        checkpoints,
        progress,
        found[1]["seconds"] if found else 0.0,
        model=load_base(recipe, plan.checkpointing),
        processing_class=tokenizer,
        args=trainer_settings(recipe, checkpoints.staging, plan, f"{recipe.name}-{identity.short}"),
        train_dataset=split.train,
        peft_config=adapter_of(recipe),
        callbacks=[
            progress,
            SaveByTheClock(recipe.checkpoints.minutes),
            TensorBoardCallback(SummaryWriter(str(out / "logs"))),
            *callbacks,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    with sdpa_kernel(FUSED), redirect_stdout(sys.stderr):  # where trackio's notes belong: a command prints what it made
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    # Under FSDP every process holds a part of the weights.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if trainer.is_world_process_zero():
        with saving(out):
            write_model(trainer, weights, split, identity, out)
        checkpoints.finish()
    return out


def write_model(trainer: LabTrainer, weights: dict | None, split: data.Split, identity: Identity, out: Path) -> None:
    """The adapter or model, the loss curve, and last the run record: with it the run counts as done."""
    recipe, model = trainer.recipe, trainer.accelerator.unwrap_model(trainer.model)
    if recipe.method != "full":
        # The base is written as the recipe names it: a path of this machine means nothing on another.
        model.peft_config["default"].base_model_name_or_path = recipe.base
    model.save_pretrained(out, state_dict=weights)
    if recipe.method == "full":
        # The base's own: the trainer's carries marks in its chat template that only training needs.
        tokenizer_of(recipe).save_pretrained(out)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    draw_loss({recipe.name: losses}, out / "loss.png")
    run_record = {
        "recipe": recipe.model_dump(),
        "data": {"examples": len(split.train), "sha256": identity.data},
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": round(trainer.seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "device": device_name(),
        "processes": trainer.args.world_size,
        "losses": losses,
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_run_record(out, run_record)
