"""From rows to what a model is trained on: `input_ids`, and `labels` with -100 where nothing is learnt.

The trainer, the data preview, the data card and held-out loss all use this module, so that they agree. The ids of a
prompt are those of the engines: the template's special tokens are special, and those spelled in a row are text. Plain
text is learnt completely, with the end-of-text token. Rows that the chat template can't write are counted by reason.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher

from inference.errors import LabError
from training.data import Split
from training.data.template.encoder import IGNORED, Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # rows that are tokenized at once
MANY = 20_000  # rows from which on several processes tokenize
IDS = datasets.List(datasets.Value("int32"))
FEATURES = datasets.Features(
    {
        "input_ids": IDS,
        "labels": IDS,
        "tokens": datasets.Value("int32"),  # before the cut
        "answer_tokens": datasets.Value("int32"),  # that are learnt, before the cut
        "problem": datasets.Value("string"),
        "notes": datasets.List(datasets.Value("string")),
    }
)


@dataclass(frozen=True)
class TokenReport:
    """What became of a split's rows: of `rows`, `truncated` are longer than `max_length` and `unlearnt` have nothing to
    learn within it. `refused` counts the rows that the chat template can't write, by reason, and `notes` what it
    changes in others."""

    rows: int
    truncated: int
    unlearnt: int
    refused: dict[str, int]
    notes: dict[str, int]

    def sentences(self) -> list[str]:
        """What a user should know, one sentence each."""
        parts = [(reason, count, "left out") for reason, count in self.refused.items()]
        parts += [(note, count, "changed") for note, count in self.notes.items()]
        found = [f"{count:,} of {self.rows:,} conversations are {fate}: {reason}." for reason, count, fate in parts]
        if self.unlearnt:
            found.append(
                f"{self.unlearnt:,} of {self.rows:,} conversations are left out: no answer is within max_length."
            )
        return found


@dataclass(frozen=True)
class TokenizedSplit:
    """The rows that can be learnt, with `input_ids` and `labels` only, and what became of all training rows."""

    train: datasets.Dataset
    validation: datasets.Dataset
    report: TokenReport


def tokenize_split(split: Split, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> TokenizedSplit:
    """The training and validation rows as tokens, cut to `max_length`. Raises LabError if nothing can be learnt."""
    rows = tokenize(split.train, tokenizer, max_length)
    found = report(rows, max_length)
    train = learnable(rows)
    if not len(train):
        if found.refused:
            reason, count = max(found.refused.items(), key=lambda each: each[1])
            raise LabError(
                f"No conversation can be learnt, most often because {reason} ({count:,} of {len(rows):,}): name another "
                "chat_template in the recipe, or change the data."
            )
        raise LabError(f"max_length={max_length} cuts off every answer, so there is nothing to learn: set it higher.")
    return TokenizedSplit(train, learnable(tokenize(split.validation, tokenizer, max_length)), found)


def tokenize(rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> datasets.Dataset:
    """The columns of FEATURES, row by row; a row with a `problem` has no tokens. None for `max_length` cuts nothing.

    datasets caches the result of rows that it has on the disk. It depends on the rows, the tokenizer, its template and
    this code.
    """
    if not len(rows):
        return datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    encoder = Encoder(tokenizer)
    if any(rows.with_format("arrow")["messages"][:].combine_chunks().value_lengths().to_numpy() > 0):
        encoder.template  # noqa: B018 - raises LabError for a template that can't be used, before work begins
    processes = min(len(os.sched_getaffinity(0)), 16) if len(rows) >= MANY else None
    return rows.map(
        encode_rows,
        batched=True,
        batch_size=BATCH,
        with_rank=True,
        num_proc=processes,
        fn_kwargs={"encoder": encoder, "max_length": max_length},
        remove_columns=rows.column_names,
        features=FEATURES,
        new_fingerprint=Hasher.hash([rows._fingerprint, encoder.fingerprint, max_length, processes]),
        desc="tokens",
    )


def encode_rows(batch: Mapping[str, list[Any]], rank: int | None, encoder: Encoder, max_length: int | None) -> Any:
    """The columns of FEATURES for a batch of rows. `rank` is the number of the process, if there are several."""
    if rank is not None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    results = encoder.encode_rows(rows)
    return {
        "input_ids": [tokens.input_ids[:max_length] for tokens, _, _ in results],
        "labels": [tokens.labels[:max_length] for tokens, _, _ in results],
        "tokens": [len(tokens.input_ids) for tokens, _, _ in results],
        "answer_tokens": [len(tokens.labels) - tokens.labels.count(IGNORED) for tokens, _, _ in results],
        "problem": [problem for _, problem, _ in results],
        "notes": [sorted(notes) for _, _, notes in results],
    }


def learnt_tokens(rows: datasets.Dataset) -> np.ndarray:
    """How many tokens of each row are learnt within the cut, int64 (n,)."""
    counts = [np.empty(0, dtype=np.int64)]
    for batch in rows.select_columns(["labels"]).with_format("arrow").iter(BATCH):
        labels = batch["labels"].combine_chunks()
        offsets, values = labels.offsets.to_numpy(), labels.values.to_numpy()
        before = np.concatenate([[0], np.cumsum(values != IGNORED)])
        counts.append(before[offsets[1:]] - before[offsets[:-1]])
    return np.concatenate(counts)


def learnable(rows: datasets.Dataset) -> datasets.Dataset:
    """The rows with something to learn, with `input_ids` and `labels`."""
    return rows.select(np.flatnonzero(learnt_tokens(rows))).select_columns(["input_ids", "labels"])


def report(rows: datasets.Dataset, max_length: int | None) -> TokenReport:
    """What became of the rows of `tokenize`."""
    problems = [problem for problem in rows["problem"] if problem]
    lengths = np.array(rows["tokens"][:])
    return TokenReport(
        rows=len(rows),
        truncated=int((lengths > max_length).sum()) if max_length else 0,
        unlearnt=int((learnt_tokens(rows) == 0).sum()) - len(problems),
        refused=dict(Counter(problems).most_common()),
        notes=dict(Counter(note for notes in rows["notes"] for note in notes).most_common()),
    )


def tokenize_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The `input_ids` and `labels` of one row. Raises LabError if the chat template can't write it."""
    ((tokens, problem, _),) = encoder_for(tokenizer, tokenizer.chat_template).encode_rows([row])
    if problem:
        raise LabError(
            f"A conversation can't be tokenized, because {problem}: change it, or name another chat_template."
        )
    return tokens.input_ids, tokens.labels


@lru_cache(maxsize=4)
def encoder_for(tokenizer: PreTrainedTokenizerBase, template: str | None) -> Encoder:
    """The encoder of a tokenizer, as long as it has this `template`."""
    return Encoder(tokenizer)
