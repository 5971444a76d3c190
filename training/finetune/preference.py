"""Direct preference optimization (Rafailov et al. 2023) with TRL's DPOTrainer.

The model learns to prefer the chosen answer to the rejected one, relative to a reference: its own start. For LoRA and
QLoRA that is the base, with the adapter turned off; full fine-tuning holds a copy of the base in memory.

`run.py` makes and runs the trainer. The private API that it overrides is listed in `tests/test_private_api.py`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from trl import DPOTrainer

from inference.errors import LabError
from inference.validation import nearest
from training.data import Split
from training.finetune.trainer import LabTrainer
from training.recipe import Recipe

if TYPE_CHECKING:
    import datasets

# The losses that TRL checks only when the base is loaded.
LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip


def check_preference_options(recipe: Recipe) -> None:
    """Raise LabError if a recipe with objective=dpo has options that exclude each other."""
    if recipe.objective != "dpo":
        return
    if recipe.packing:
        raise LabError("packing=true is not possible with objective=dpo, which compares answers: set packing=false.")
    losses = recipe.trl.get("loss_type", [])
    for loss in [losses] if isinstance(losses, str) else losses:
        if loss not in LOSSES:
            raise LabError(f"“trl.loss_type” can't be {loss!r}{nearest(loss, LOSSES)}: choose of {', '.join(LOSSES)}.")
    if recipe.trl.get("sync_ref_model") and recipe.method != "full":
        raise LabError("“trl.sync_ref_model” needs method=full: an adapter's reference is its base. Remove it.")


def check_objective(recipe: Recipe, split: Split) -> None:
    """Raise LabError if objective=dpo has no pairs to learn from; say what objective=sft learns from pairs."""
    name, pairs = recipe.data.name, sum(bool(rejected) for rejected in split.train["rejected"])
    if recipe.objective == "dpo" and pairs < len(split.train):
        raise LabError(
            f"objective=dpo learns from pairs of a chosen and a rejected answer, and {len(split.train) - pairs:,} of "
            f"{len(split.train):,} rows of {name} have no rejected one: name preference data, or set objective=sft."
        )
    if recipe.objective == "sft" and pairs:
        print(
            f"{name} is preference data: objective=sft learns the {pairs:,} chosen answers alone. Set objective=dpo to "
            "learn from the pairs.",
            file=sys.stderr,
        )


class PreferenceTrainer(LabTrainer, DPOTrainer):
    """TRL's DPOTrainer on the rows of `tokenize_pairs`."""

    def lengths(self, rows: datasets.Dataset) -> list[int]:
        """The tokens of each row's longer conversation."""
        columns = (rows[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
        return [len(prompt) + max(len(one), len(other)) for prompt, one, other in zip(*columns, strict=True)]

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL would render and tokenize the rows its own way. They are tokens already.
        return dataset


def preference_record(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """For the run record, at each logged step: the mean reward margin between chosen and rejected answers, and the
    share of pairs whose chosen answer has the higher reward. A reward is beta times the log-ratio to the reference."""
    return [
        {"step": int(entry["step"]), "margin": entry["rewards/margins"], "accuracy": entry["rewards/accuracies"]}
        for entry in log_history
        if "rewards/margins" in entry
    ]
