"""Data sets in one form: conversations, which are lists of chat messages, split into training and evaluation.

`load` returns what a recipe asks for. `emoji/` makes the emoji data set; `formats.py` reads every other one, with the
rows from `source.py`. `data_card.py` reports what a split holds. May import `inference`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

    from training.recipe import Data

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": the text}


@dataclass(frozen=True)
class Report:
    """What happened to a data set's rows.

    `form` is the format of the rows. Of `rows` in total, `kept` conversations are in the two splits or left out by
    `Data.examples`; `broken` counts unusable rows by reason, and `duplicates` counts repeated ones. `cut` conversations
    were kept without their last question, because it has no answer.
    """

    form: str
    rows: int
    kept: int
    broken: dict[str, int]
    duplicates: int
    cut: int


@dataclass(frozen=True)
class Split:
    """Two data sets with one column, `messages`: a list of {role, content} with the roles system, user and assistant.

    No conversation is in both.
    """

    train: datasets.Dataset
    evaluation: datasets.Dataset
    report: Report


def load(data: Data) -> Split:
    """The data set that a recipe asks for. Raises LabError if it is not available or has no usable rows."""
    if data.name == "emoji":
        from training.data.emoji import dataset

        return dataset.load(data)
    from training.data import formats

    return formats.load(data)


def fingerprint(conversations: Iterable[list[Message]]) -> str:
    """SHA-256 of a split (a list, or a data set's column): runs with the same fingerprint saw the same data."""
    digest = hashlib.sha256(b"[")
    for number, conversation in enumerate(conversations):
        digest.update(((", " if number else "") + json.dumps(conversation, ensure_ascii=False)).encode())
    digest.update(b"]")
    return digest.hexdigest()
