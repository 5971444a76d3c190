"""Supervised fine-tuning: a recipe in, a model folder with a LoRA adapter out. `python -m training sft RECIPE`

TRL's SFTTrainer trains, PEFT adapts, bitsandbytes holds the base in 4 bits (QLoRA, Dettmers et al. 2023). The loss is
on the assistant's tokens only. The folder gets the adapter, `run.json` (the receipt) and `loss.png`; GGUF files are
`export.py`'s work, figures `evaluate.py`'s. Full fine-tuning and resuming are not done here yet.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import datasets
import torch
from peft import LoraConfig, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, Trainer, set_seed
from trl import SFTConfig, SFTTrainer

from inference.errors import LabError
from training import data
from training.plots import draw_loss
from training.receipt import device_name, write_receipt
from training.recipe import Recipe

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def compute_dtype() -> torch.dtype:
    """What this machine computes in: bfloat16 where it is fast, else float16 on a GPU and float32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def load_base(recipe: Recipe) -> PreTrainedModel:
    """The base model: 4-bit NF4 with double quantization for QLoRA, else in the machine's own type."""
    dtype = compute_dtype()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            recipe.base_location,
            dtype=dtype,
            quantization_config=quantization if recipe.method == "qlora" else None,
            device_map={"": 0} if torch.cuda.is_available() else "cpu",
            # On a CPU the plain form was faster than torch's fused attention, most of all backward.
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
        )
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise LabError(f"The base {recipe.base} can't be loaded ({reason}): check its name or the network.") from error
    if recipe.method == "lora":
        return model
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=torch.cuda.is_available())


def trainer_settings(recipe: Recipe, out: Path) -> SFTConfig:
    """The recipe in TRL's words."""
    dtype = compute_dtype()
    return SFTConfig(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_length=recipe.max_length,
        packing=recipe.packing,
        assistant_only_loss=True,
        gradient_checkpointing=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="group_by_length",
        include_num_input_tokens_seen="non_padding",
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


class LoraTrainer(SFTTrainer):
    """TRL's trainer, with transformers' own loss on a CPU.

    TRL's fused loss saves memory by Triton kernels; without those it loops over chunks and scores the prompts and the
    padding as well, which took a quarter of a step. The loss is the same.
    """

    def compute_loss(
        self, model: PreTrainedModel, inputs: dict, return_outputs: bool = False, num_items_in_batch: int | None = None
    ) -> torch.Tensor | tuple:
        """See `transformers.Trainer.compute_loss`."""
        compute = SFTTrainer.compute_loss if torch.cuda.is_available() else Trainer.compute_loss
        return compute(self, model, inputs, return_outputs, num_items_in_batch)


def fine_tune(recipe: Recipe, out: Path) -> Path:
    """Train the recipe's adapter into the folder `out` and return it."""
    set_seed(recipe.seed)
    split = data.conversations(recipe.data)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_location)
    trainer = LoraTrainer(
        model=load_base(recipe),
        processing_class=tokenizer,
        args=trainer_settings(recipe, out),
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in split]),
        peft_config=LoraConfig(
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started

    # The base is written as the recipe names it: a path of this machine means nothing on another.
    trainer.model.peft_config["default"].base_model_name_or_path = recipe.base
    trainer.model.save_pretrained(out)
    losses = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    receipt = {
        "recipe": recipe.model_dump(),
        "data": {"examples": len(split), "sha256": data.fingerprint(split)},
        "steps": trainer.state.global_step,
        "tokens": int(trainer.state.num_input_tokens_seen),
        "seconds": round(seconds, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "device": device_name(),
        "losses": losses,
        "versions": {package: version(package) for package in PACKAGES},
    }
    write_receipt(out, receipt)
    draw_loss({recipe.name: losses}, out / "loss.png")
    return out
