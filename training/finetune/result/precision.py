"""The dtypes of a run: what the base is held in, what is computed in, what is trained, and what is saved.

The trained weights and the optimizer's moments are float32 on every machine. bfloat16 has 8 bits of precision:
it rounds an update away that is smaller than 1/512 of its weight (docs/benchmarks.md, Precision of training).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from training.finetune.base_model import compute_dtype

if TYPE_CHECKING:
    from transformers import Trainer

    from training.recipe import Recipe


def precision(trainer: Trainer, recipe: Recipe, saved: torch.dtype) -> dict[str, str]:
    """The dtypes of a finished run, by their short names: `base`, `compute`, `trained`, `moments` and `saved`."""
    parameters = list(trainer.model.parameters())  # type: ignore[union-attr]  # a trainer has a model
    frozen = {name_of(weight.dtype) for weight in parameters if not weight.requires_grad and weight.is_floating_point()}
    base = "nf4" if recipe.method == "qlora" else " and ".join(sorted(frozen))
    return {
        "base": base or name_of(torch.float32),
        "compute": name_of(compute_dtype()),
        "trained": " and ".join(sorted({name_of(weight.dtype) for weight in parameters if weight.requires_grad})),
        "moments": " and ".join(sorted(moments(trainer.optimizer))),
        "saved": name_of(saved),
    }


def moments(optimizer: Any) -> set[str]:
    """The dtypes of an optimizer's moments, which are the parts of its state in the shape of the weight."""
    state = getattr(optimizer, "optimizer", optimizer).state  # accelerate wraps it
    return {
        name_of(value.dtype)
        for weight, entry in state.items()
        for value in entry.values()
        if isinstance(value, torch.Tensor) and value.shape == weight.shape
    }


def saved_dtype(recipe: Recipe, base: object) -> torch.dtype:
    """The dtype of the saved weights: an adapter's own float32; a complete model's is the base's, if that has 16 bits,
    else bfloat16."""
    if recipe.method != "full":
        return torch.float32
    return base if isinstance(base, torch.dtype) and base.itemsize == 2 else torch.bfloat16


def name_of(dtype: torch.dtype) -> str:
    """A dtype's name, such as "float32"."""
    return str(dtype).removeprefix("torch.")
