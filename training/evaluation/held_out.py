"""Held-out rows as tokens, for losses and answers: as in training, cut to the recipe's `max_length`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.data.rows import rejected_conversation
from training.data.tokens import IGNORED, tokenize
from training.finetune.base_model import load_tokenizer
from training.finetune.validation.samples import SHOWN_PROMPT, decode, prompt_and_answer
from training.recipe import Recipe

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOutRow:
    """A row's tokens and labels (-100: not learnt), and of a preference those of the rejected answer."""

    input_ids: list[int]
    labels: list[int]
    rejected_ids: list[int]
    rejected_labels: list[int]
    last_question: str

    @property
    def learnt(self) -> bool:
        """Whether a token is learnt; of a preference, in both answers."""
        both = [self.labels, *([self.rejected_labels] if self.rejected_ids else [])]
        return all(any(label != IGNORED for label in labels[1:]) for labels in both)

    @property
    def prompt(self) -> list[int]:
        """The tokens before the last answer."""
        return prompt_and_answer(self.input_ids, self.labels)[0]

    def question(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The last question as text; of plain text, its beginning."""
        return self.last_question or decode(tokenizer, self.prompt)[-SHOWN_PROMPT:]


def read_held_out(rows: datasets.Dataset, recipe: Recipe) -> tuple[PreTrainedTokenizerBase, list[HeldOutRow]]:
    """The base's tokenizer, and the rows as tokens. Raises LabError if the base's tokenizer is not available."""
    tokenizer = load_tokenizer(recipe)
    chosen = tokenize(rows, tokenizer, recipe.max_length)
    pairs = rows.filter(bool, input_columns="rejected")
    others = tokenize(pairs.map(lambda row: {"messages": rejected_conversation(row)}), tokenizer, recipe.max_length)
    rejected = zip(others["input_ids"], others["labels"], strict=True)
    found = []
    for row, ids, labels in zip(rows, chosen["input_ids"], chosen["labels"], strict=True):
        other_ids, other_labels = next(rejected) if row["rejected"] else ([], [])
        found.append(HeldOutRow(ids, labels, other_ids, other_labels, last_question(row["messages"])))
    return tokenizer, found


def last_question(messages: Sequence[Any]) -> str:
    """The content of the last user turn; "" if there is none."""
    return next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
