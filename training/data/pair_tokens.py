"""From rows of preference data to tokens: the ids of the prompt, of the chosen and of the rejected answer.

The ids are those of `tokens.py`, so that templates and special tokens mean the same as in all other data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import datasets

from inference.errors import LabError
from training.data import Split
from training.data.rows import rejected_conversation
from training.data.tokens import IDS, IGNORED, TokenizedSplit, report, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompt and answers are for TRL's DPOTrainer; `input_ids` and `labels` are the chosen conversation, as in all other data.
PAIR_FEATURES = datasets.Features(
    dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids", "input_ids", "labels"), IDS)
)


def tokenize_pairs(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenizedSplit:
    """The training and validation pairs as tokens, with the columns of PAIR_FEATURES. Raises LabError if none is left.

    Pairs whose prompt fills `max_length` are left out: the trainer cuts both answers there.
    """
    train, validation = (pair_tokens(rows, tokenizer, max_length) for rows in (split.train, split.validation))
    if not len(train):
        raise LabError(f"max_length={max_length} cuts off every answer, so there is nothing to learn: set it higher.")
    return TokenizedSplit(train, validation, report(tokenize(split.train, tokenizer, max_length), max_length))


def pair_tokens(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> datasets.Dataset:
    """The columns of PAIR_FEATURES of those rows of preference data that can be learnt."""
    if not len(rows):
        return datasets.Dataset.from_dict({name: [] for name in PAIR_FEATURES}, features=PAIR_FEATURES)
    others = rows.map(lambda row: {"messages": rejected_conversation(row)}, desc="rejected answers")
    both = [tokenize(part, tokenizer, None).select_columns(["input_ids", "labels"]) for part in (rows, others)]
    joined = datasets.concatenate_datasets(
        [both[0], both[1].rename_columns({"input_ids": "other_ids", "labels": "other_labels"})], axis=1
    )
    pairs = joined.map(
        join_pair,
        fn_kwargs={"max_length": max_length},
        remove_columns=["other_ids", "other_labels"],
        features=PAIR_FEATURES,
        desc="pairs",
    )
    return pairs.filter(
        lambda prompt, chosen: chosen and len(prompt) < max_length, input_columns=list(PAIR_FEATURES)[:2]
    )


def join_pair(row: Mapping[str, list[int]], max_length: int) -> dict[str, list[int]]:
    """The columns of PAIR_FEATURES of a pair, from the tokens of its two conversations.

    An answer begins at its first learnt token and ends at its last one. All are empty if one answer has no token.
    """
    (chosen, start), (rejected, other_start) = (
        learnt_part(ids, labels)
        for ids, labels in ((row["input_ids"], row["labels"]), (row["other_ids"], row["other_labels"]))
    )
    if not chosen or not rejected:
        return {name: [] for name in PAIR_FEATURES}
    # Some templates write the prompt differently for another answer: such a part belongs to the answers.
    start = min(start, other_start, common_length(chosen, rejected))
    return {
        "prompt_ids": chosen[:start],
        "chosen_ids": chosen[start:],
        "rejected_ids": rejected[start:],
        "input_ids": row["input_ids"][:max_length],
        "labels": row["labels"][:max_length],
    }


def learnt_part(ids: list[int], labels: list[int]) -> tuple[list[int], int]:
    """The tokens up to the last learnt one, and where the first learnt one is; nothing if none is learnt."""
    learnt = [i for i, label in enumerate(labels) if label != IGNORED]
    return (ids[: learnt[-1] + 1], learnt[0]) if learnt else ([], 0)


def common_length(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences have in common at their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))
