"""Looks at the base and the data of a new recipe: what `choices.py` needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.errors import LabError
from training.data import Report

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from training.recipe import Recipe


@dataclass(frozen=True)
class BaseFacts:
    """A base: its parameters, and the tokens that it reads at most (None if its configuration does not say).

    `chat_template` is the name of the template that the recipe has to give it; "" if it has its own.
    """

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    context: int | None
    chat_template: str


@dataclass(frozen=True)
class DataFacts:
    """A data set: its usable rows, their form, and their `lengths` in tokens (int64), of a preference's longer answer.

    `preferences` says whether the rows are pairs of a chosen and a rejected answer.
    """

    name: str
    report: Report
    rows: int
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    preferences: bool

    @property
    def form(self) -> str:
        """The format of the rows in words."""
        return self.report.form

    def share_longer(self, length: int) -> float:
        """The share of the rows that are longer than `length` tokens, in [0, 1]."""
        return float((self.lengths > length).mean())

    def quantile(self, share: float) -> int:
        """The length that this share of the rows does not exceed, in tokens."""
        return int(np.quantile(self.lengths, share, method="higher"))


def inspect_base(recipe: Recipe) -> BaseFacts:
    """Look at the recipe's base: its configuration and tokenizer, some megabytes. Raises LabError if they are not
    available."""
    from inference.engines.chat_template.named import find_template, fitting_templates
    from training.data.template.training_template import special_tokens
    from training.finetune.base_model import load_config, load_tokenizer, translate_base_errors
    from training.finetune.planning.memory import count_parameters

    config, tokenizer = load_config(recipe), load_tokenizer(recipe)
    with translate_base_errors(recipe.base):
        count = count_parameters(recipe, config)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    template = ""
    if not tokenizer.chat_template:
        template = fitting_templates(special_tokens(tokenizer).ids)[0]
        tokenizer.chat_template = find_template(template)
    return BaseFacts(recipe.base, config, tokenizer, count.linear + count.other, context, template)


def inspect_data(recipe: Recipe, base: BaseFacts) -> DataFacts:
    """Read the recipe's data and count the tokens of each usable row. Raises LabError if there are none."""
    from training.data import load
    from training.preview.contents import count_row_tokens

    split = load(recipe.data.model_copy(update={"evaluation": 0, "validation": 0}))
    pairs = any(split.train["rejected"])
    objective = "dpo" if pairs and all(split.train["rejected"]) else "sft"
    counts = count_row_tokens(recipe.model_copy(update={"objective": objective}), split.train, base.tokenizer)
    lengths = counts.lengths[counts.lengths > 0]
    if not lengths.size:
        reason = next(iter(counts.report.refused), "they are empty")
        raise LabError(f"No row of {recipe.data.name} can be learnt, most often because {reason}: set chat_template.")
    return DataFacts(recipe.data.name, split.report, len(lengths), lengths, objective == "dpo")
