"""The adapter's shape for PEFT: the recipe's `lora` section, and its `peft` mapping for everything else."""

from __future__ import annotations

from peft import LoraConfig

from inference.errors import LabError
from inference.validation import reason_of
from training.finetune.libraries.option_check import check_options
from training.recipe import Recipe

# Settings that the lab makes itself, with the recipe's field for them.
RESERVED = {
    "r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "base_model_name_or_path": "base",
    "revision": "",
    "task_type": "",
    "peft_type": "",
    "peft_version": "",
    "auto_mapping": "",
    "inference_mode": "",
    "runtime_config": "",
}


def check_peft_options(recipe: Recipe) -> None:
    """Raises LabError if the recipe's `peft` mapping has a key or a value that `LoraConfig` doesn't take."""
    if not recipe.peft:
        return
    if recipe.method == "full":
        raise LabError("“peft” has no effect with method=full, which trains no adapter: remove it, or use method=lora.")
    check_options("peft", recipe.peft, LoraConfig, RESERVED, {})
    lora_config(recipe)


def lora_config(recipe: Recipe) -> LoraConfig | None:
    """The adapter's shape for PEFT; None for full fine-tuning. Raises LabError if its options contradict each other."""
    if recipe.method == "full":
        return None
    options = {"target_modules": "all-linear"} | recipe.peft
    try:
        return LoraConfig(
            r=recipe.lora.r,
            lora_alpha=recipe.lora.alpha,
            lora_dropout=recipe.lora.dropout,
            task_type="CAUSAL_LM",
            **options,
        )
    except (ValueError, TypeError, ImportError) as error:
        raise LabError(f"PEFT refuses the options in “peft” ({reason_of(error)}): change or remove them.") from error
