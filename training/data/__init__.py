"""Data sets in one normal form: conversations, each a list of chat messages, split into training and evaluation.

`load` gives what a recipe asks for: `emoji` makes the emoji data set here, `formats.py` reads every other one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.data.emoji import dataset as emoji
from training.data.emoji.dataset import Message

if TYPE_CHECKING:
    import datasets

    from training.recipe import Data

# Far from any seed that a person would choose for training.
EVALUATION_SEED = 1_000_003


@dataclass(frozen=True)
class Report:
    """What became of a data set's rows: `rows` there were, of which `kept` conversations are in the two splits or left
    out by `Data.examples`; `broken` counts the rest by reason, `duplicates` those that were there already. `cut` of
    those kept have lost a last question that nobody answers. `form` is what the rows looked like."""

    form: str
    rows: int
    kept: int
    broken: dict[str, int]
    duplicates: int
    cut: int


@dataclass(frozen=True)
class Split:
    """Two data sets with one column, `messages`: a list of {role, content} with the roles system, user, assistant. No
    conversation is in both."""

    train: datasets.Dataset
    evaluation: datasets.Dataset
    report: Report


def load(data: Data) -> Split:
    """The data set that a recipe asks for. Raises LabError where it can't be had or has nothing usable."""
    if data.name == "emoji":
        return emoji_split(data)
    from training.data import formats

    return formats.load(data)


def emoji_split(data: Data) -> Split:
    """The emoji data set, and as an evaluation split conversations drawn alike that training doesn't have.

    What training has twice stays: repeats are drawn on purpose, they are how often a fact is rehearsed.
    """
    import datasets

    from training.data.formats import FEATURES

    train = emoji.examples(data.examples or 5000, data.seed)
    seen = {json.dumps(conversation) for conversation in train}
    drawn = emoji.examples(2 * data.evaluation, data.seed + EVALUATION_SEED)
    unseen = list({text: c for c in drawn if (text := json.dumps(c)) not in seen}.values())[: data.evaluation]
    count = len(train) + len(unseen)
    report = Report(form="emoji", rows=count, kept=count, broken={}, duplicates=0, cut=0)
    return Split(
        datasets.Dataset.from_dict({"messages": train}, features=FEATURES),
        datasets.Dataset.from_dict({"messages": unseen}, features=FEATURES),
        report,
    )


def fingerprint(conversations: Iterable[list[Message]]) -> str:
    """SHA-256 of a split, a list or a data set's column: two runs with the same one have seen the same data."""
    digest = hashlib.sha256(b"[")
    for number, conversation in enumerate(conversations):
        digest.update(((", " if number else "") + json.dumps(conversation, ensure_ascii=False)).encode())
    digest.update(b"]")
    return digest.hexdigest()
