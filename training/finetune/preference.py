"""Direct preference optimization (Rafailov et al. 2023): TRL's DPOTrainer, on pairs that are tokenized as all other data.

The model learns to prefer the chosen answer to the rejected one, relative to a reference: its own start. For LoRA and
QLoRA that is the base, with the adapter turned off; full fine-tuning holds a copy of the base in memory.

`run.py` makes and runs the trainer. The private API that it overrides is listed in `tests/test_private_api.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase
from trl import DPOTrainer

from inference.errors import LabError
from training.data import Split
from training.data.tokens import IGNORED, tokenize_row
from training.finetune.trainer import LabTrainer
from training.recipe import Recipe

if TYPE_CHECKING:
    import datasets

# A row's tokens: the prompt and the two answers for TRL, and the chosen conversation as for supervised fine-tuning.
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "input_ids", "labels")


def check_objective(recipe: Recipe, split: Split) -> None:
    """Raise LabError if the recipe's objective can't learn from its data, or has a field that it can't follow."""
    if recipe.objective != "dpo":
        return
    name = recipe.data.name
    if not all(split.train["rejected"]):
        raise LabError(
            f"objective=dpo learns from pairs of answers, but {name} has rows without `chosen` and `rejected`: name a "
            "preference data set, or set objective=sft."
        )
    if recipe.packing:
        raise LabError(
            "packing=true is not possible with objective=dpo, which compares two answers: set packing=false."
        )


def tokenize_pairs(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """The rows as token ids, without those whose prompt alone fills `max_length`. Raises LabError if none is left.

    An answer begins at its first learnt token and ends at its last one, as in supervised fine-tuning.
    """
    pairs = rows.map(
        tokenize_pair,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=rows.column_names,
        desc="tokens of the pairs",
    ).filter(lambda prompt: len(prompt) < max_length, input_columns="prompt_ids")
    if len(rows) and not len(pairs):
        raise LabError(f"max_length={max_length} cuts off every answer, so there is nothing to learn: set it higher.")
    return pairs


def tokenize_pair(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list[int]]:
    """The columns `COLUMNS` of a row of preference data."""
    prompt = prompt_of(row)
    chosen, rejected = (
        answer_tokens(row, prompt, answer, tokenizer) for answer in (row["messages"][len(prompt) :], row["rejected"])
    )
    start = min(chosen[1], rejected[1], common_length(chosen[0], rejected[0]))
    ids = chosen[0][:max_length]
    return {
        "prompt_ids": chosen[0][:start],
        "chosen_ids": chosen[0][start:],
        "rejected_ids": rejected[0][start:],
        "input_ids": ids,
        "labels": [IGNORED] * min(start, len(ids)) + ids[start:],
    }


def prompt_of(row: dict[str, Any]) -> list[Any]:
    """The turns before the chosen answer, which has as many turns at the end as the data's row has for it."""
    turns = row["messages"]
    end = max((i for i, turn in enumerate(turns) if turn["role"] in ("user", "system")), default=-1)
    return turns[: end + 1]


def answer_tokens(
    row: dict[str, Any], prompt: list[Any], answer: list[Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], int]:
    """The token ids of prompt and answer up to the answer's end, and where the answer starts."""
    turns = [turn | {"train": False} for turn in prompt]
    turns += [turn | {"train": turn["role"] == "assistant"} for turn in answer]
    ids, labels = tokenize_row(row | {"messages": turns, "rejected": []}, tokenizer)
    learnt = [i for i, label in enumerate(labels) if label != IGNORED]
    return ids[: learnt[-1] + 1], learnt[0]


def common_length(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


class PreferenceTrainer(LabTrainer, DPOTrainer):
    """TRL's DPOTrainer on the rows of `tokenize_pairs`."""

    def lengths(self, rows: datasets.Dataset) -> list[int]:
        """The tokens of each row's longer conversation."""
        return [
            len(prompt) + max(len(chosen), len(rejected))
            for prompt, chosen, rejected in zip(
                rows["prompt_ids"], rows["chosen_ids"], rows["rejected_ids"], strict=True
            )
        ]

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # TRL would render and tokenize the rows its own way. They are tokens already.
        return dataset


def preference_curve(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """For the run record: at each logged step, the mean reward margin between chosen and rejected answers, and the share
    of pairs in which the chosen one has the higher reward (β times the log-ratio to the reference)."""
    return [
        {"step": int(entry["step"]), "margin": entry["rewards/margins"], "accuracy": entry["rewards/accuracies"]}
        for entry in log_history
        if "rewards/margins" in entry
    ]
