"""What `training new` says of base, data and the recipe that it chose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.finetune.planning.speed import count_steps
from training.new.choices import describe_count
from training.preview.words import describe_duration, describe_memory

if TYPE_CHECKING:
    from training.finetune.planning.estimates import Estimate
    from training.new.inspection import BaseFacts, DataFacts
    from training.recipe import Recipe


def describe_base(base: BaseFacts) -> str:
    """A base in one line."""
    context = f", reads {base.context:,} tokens" if base.context else ""
    template = f"no chat template (the recipe sets {base.chat_template})" if base.chat_template else "a chat template"
    return f"Base:  {base.name}: {describe_count(base.parameters)} parameters{context}, {template}."


def describe_data(data: DataFacts) -> str:
    """A data set in one line."""
    left_out = sum(data.report.broken.values()) + data.report.duplicates
    but = f", {left_out:,} left out" if left_out else ""
    half, most = data.quantile(0.5), data.quantile(0.99)
    return f"Data:  {data.name}: {data.rows:,} rows ({data.form}){but}; half have ≤ {half:,} tokens, 99 % ≤ {most:,}."


def describe_run(data: DataFacts, recipe: Recipe, estimated: Estimate) -> str:
    """The run of the recipe in one line."""
    steps = count_steps(recipe, data.lengths[: learnt_rows(recipe, data)])
    how = recipe.method if recipe.method == "full" else f"{recipe.method} of rank {recipe.lora.r}"
    batch = recipe.batch_size
    took = f"about {describe_duration(estimated.seconds)} and {describe_memory(estimated)} on {estimated.card.name}"
    return f"Run:   {how}, {recipe.epochs:g} epochs, {steps:,} steps of {batch} row{'' if batch == 1 else 's'}; {took}."


def learnt_rows(recipe: Recipe, data: DataFacts) -> int:
    """The number of rows to learn from."""
    left = data.rows - recipe.data.evaluation - recipe.data.validation
    return min(left, recipe.data.examples or left)
