"""The loss of each held-out row under a model in PyTorch, for comparisons that need no GGUF file and no engine.

Rows are tokenized and cut as in training (`training/data/tokens.py`), and the loss is on the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.data.tokens import IGNORED
from training.export.model_folder import is_adapter, load_model
from training.finetune.base_model import compute_dtype, translate_base_errors
from training.finetune.planning.fallback import release_memory
from training.recipe import Recipe


@dataclass(frozen=True)
class RowLoss:
    """The summed loss (nats) of the learnt tokens of a row, and their number."""

    nats: float
    tokens: int


def device_and_dtype() -> tuple[str, torch.dtype]:
    """Where and in which dtype losses are computed: in 16 bits on a GPU, in float32 on a CPU."""
    return ("cuda", compute_dtype()) if torch.cuda.is_available() else ("cpu", torch.float32)


def load_for_scoring(folder: Path) -> Any:
    """The model of a run's folder, ready to compute losses. A base that is trained in 4 bits is not quantized here.
    Raises LabError if the model is incomplete."""
    release_memory()
    device, dtype = device_and_dtype()
    model: Any = load_model(folder, dtype)
    return model.to(device).eval()


def base_and_fine_tuned(folder: Path, recipe: Recipe) -> Iterator[Any]:
    """First the base of a run, then the fine-tuned model; one at a time is in memory. Raises LabError if one is not
    available."""
    if is_adapter(folder):
        model = load_for_scoring(folder)
        with model.disable_adapter():
            yield model
        yield model
    else:
        yield load_base_for_scoring(recipe)
        yield load_for_scoring(folder)


def load_base_for_scoring(recipe: Recipe) -> Any:
    """The base of a recipe, not quantized. Raises LabError if it is not available."""
    from transformers import AutoModelForCausalLM

    release_memory()
    device, dtype = device_and_dtype()
    with translate_base_errors(recipe.base):
        model: Any = AutoModelForCausalLM.from_pretrained(recipe.base_location, dtype=dtype)
    return model.to(device).eval()


@torch.inference_mode()
def row_loss(model: Any, input_ids: Sequence[int], labels: Sequence[int]) -> RowLoss:
    """The loss of one row. `labels` has -100 for each token that is not learnt.

    Only the logits before learnt tokens are computed, because a vocabulary can be large.
    """
    learnt = [i for i in range(1, len(labels)) if labels[i] != IGNORED]
    if not learnt:
        return RowLoss(0.0, 0)
    ids = torch.tensor([input_ids], device=model.device)
    positions = torch.tensor(learnt, device=model.device)
    logits = model(input_ids=ids, logits_to_keep=positions - 1).logits[0].float()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, positions], reduction="sum")
    return RowLoss(float(nats), len(learnt))
