"""Gathers what the preview shows: the fate of the rows, their lengths, examples, and what the run will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.data import Report
from training.data.rows import rejected_conversation
from training.data.tokens import TokenReport, learnt_tokens, report, tokenize
from training.finetune.planning.cards import CARDS, this_machine
from training.finetune.planning.estimates import Estimate, estimate
from training.finetune.planning.speed import count_rows, count_steps
from training.preview.spans import Span, spans

if TYPE_CHECKING:
    import datasets
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from training.data import Split
    from training.recipe import Recipe

Counts = np.ndarray[Any, np.dtype[np.int64]]
EXAMPLES = 20  # on the page
BARS = 12  # of the histogram of lengths


@dataclass(frozen=True)
class TokenCounts:
    """The tokens of rows: `lengths` before max_length cuts, `learnt` within it, both int64 (rows,); and what became of
    the rows. A preference is as long as its longer answer makes it. Rows that the chat template refuses have none."""

    lengths: Counts
    learnt: Counts
    report: TokenReport

    @property
    def trained(self) -> Counts:
        """The lengths of the rows that a run learns from."""
        return self.lengths[self.learnt > 0]


@dataclass(frozen=True)
class Example:
    """A row, marked. `rejected` is the rejected answer of a preference, else empty."""

    pieces: list[Span]
    rejected: list[Span]

    @property
    def tokens(self) -> int:
        """The tokens of the row, or of its chosen conversation."""
        return sum(piece.tokens for piece in self.pieces)


@dataclass(frozen=True)
class Preview:
    """A recipe's data and run. `splits` counts the rows of each; `examples` and `counts` are of the training split."""

    recipe: Recipe
    report: Report
    splits: dict[str, int]
    examples: list[Example]
    counts: TokenCounts
    estimates: list[Estimate]

    @property
    def lengths(self) -> Counts:
        """The tokens of each training row that the chat template can write, before max_length cuts it."""
        return self.counts.lengths[self.counts.lengths > 0]

    @property
    def cut(self) -> float:
        """The share of the rows that max_length cuts, in [0, 1]."""
        return float((self.lengths > self.recipe.max_length).mean())

    @property
    def cut_tokens(self) -> float:
        """The share of the tokens that are cut off, in [0, 1]."""
        return float(np.maximum(self.lengths - self.recipe.max_length, 0).sum() / self.lengths.sum())

    @property
    def learnt(self) -> float:
        """The share of the tokens that a run learns, in [0, 1]."""
        return float(self.counts.learnt.sum() / np.minimum(self.lengths, self.recipe.max_length).sum())

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return count_steps(self.recipe, self.counts.trained)

    @property
    def rows_per_epoch(self) -> int:
        """Rows that the trainer sees in an epoch: packing joins several conversations into one."""
        return count_rows(self.recipe, self.counts.trained)

    def quantiles(self) -> dict[str, int]:
        """The lengths that half, nine tenths, 99 % and all of the rows do not exceed."""
        shares = {"half": 0.5, "90 %": 0.9, "99 %": 0.99, "all": 1.0}
        return {name: int(np.quantile(self.lengths, share, method="higher")) for name, share in shares.items()}


def make_preview(recipe: Recipe, split: Split, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> Preview:
    """Look at a recipe's data and run. Raises LabError if the chat template can't be used."""
    counts = count_row_tokens(recipe, split.train, tokenizer)
    lengths = counts.trained if counts.trained.size else counts.lengths
    cards = [*CARDS.values(), this_machine()]
    return Preview(
        recipe=recipe,
        report=split.report,
        splits={"training": len(split.train), "validation": len(split.validation), "evaluation": len(split.evaluation)},
        examples=make_examples(recipe, split.train.select(range(min(EXAMPLES, len(split.train)))), tokenizer),
        counts=counts,
        estimates=[estimate(recipe, config, lengths, card) for card in cards],
    )


def count_row_tokens(recipe: Recipe, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> TokenCounts:
    """The tokens of rows as the trainer counts them."""
    tokens = tokenize(rows, tokenizer, recipe.max_length)
    lengths = np.array(tokens["tokens"][:], dtype=np.int64)
    if recipe.objective == "dpo":
        others = np.array(tokenize(rejected(rows), tokenizer, recipe.max_length)["tokens"][:], dtype=np.int64)
        lengths = np.where(others > 0, np.maximum(lengths, others), 0)
    return TokenCounts(lengths, learnt_tokens(tokens), report(tokens, recipe.max_length))


def rejected(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows of preference data with the rejected answer in place of the chosen one."""
    return rows.map(lambda row: {"messages": rejected_conversation(row)}, desc="rejected answers")


def make_examples(recipe: Recipe, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The rows, marked; without those that the chat template refuses."""
    marked = mark_rows(recipe, rows, tokenizer)
    if recipe.objective != "dpo":
        return [Example(pieces, []) for pieces in marked if pieces]
    others = mark_rows(recipe, rejected(rows), tokenizer)
    return [
        Example(pieces, [piece for piece in other if piece.kind != "read"])
        for pieces, other in zip(marked, others, strict=True)
        if pieces
    ]


def mark_rows(recipe: Recipe, rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> list[list[Span]]:
    """The pieces of each row, none of a row that the chat template refuses."""
    tokens = tokenize(rows, tokenizer, None)
    return [
        spans(row["input_ids"], row["labels"], recipe.max_length, tokenizer) if row["input_ids"] else []
        for row in tokens
    ]


def histogram(lengths: Counts) -> list[tuple[int, int, int]]:
    """Rows by length: (from, to, rows), where `to` is not included. Each interval is twice as wide as the last if the
    lengths differ much, else all are equally wide."""
    low, high = int(lengths.min()), int(lengths.max()) + 1
    if high > 16 * max(low, 1):
        first = 2 ** max(low.bit_length() - 1, 3)
        edges = [0, *(first * 2**power for power in range(1, 40) if first * 2 ** (power - 1) < high)]
    else:
        width = next(
            step
            for power in range(9)
            for step in (10**power, 2 * 10**power, 5 * 10**power)
            if (high - low) / step <= BARS
        )
        start = low // width * width
        edges = list(range(start, high + width, width))
    counts, _ = np.histogram(lengths, bins=edges)
    return [(a, b, int(count)) for a, b, count in zip(edges[:-1], edges[1:], counts, strict=True)]
