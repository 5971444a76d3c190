"""Data sets in one form: rows of conversations or text, split into training, validation and evaluation.

`load` returns what a recipe asks for, as rows of the form `Row`. `emoji/` makes the emoji data set. Of every other one,
`source.py` finds the files, `reading/` makes rows of them, and `splitting.py` splits them. `data_card.py` reports what a
split holds. May import `inference`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import datasets

    from training.recipe import Data

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": the text}


class Turn(TypedDict):
    """One turn of a row. `train` says whether a run learns it: by default, if the role is assistant.

    `role` is system, user, assistant or tool. `reasoning` is the assistant's reasoning before `content`, or "".
    `tool_calls` is a JSON list of calls in OpenAI's form, or "".
    """

    role: str
    content: str
    train: bool
    reasoning: str
    tool_calls: str


class Row(TypedDict):
    """One row of a split: a conversation, a preference between two answers, or plain text.

    `messages` is the conversation; of a preference, the prompt and the chosen answer. `rejected` holds the turns of the
    rejected answer alone, and is empty otherwise. `tools` is a JSON list of tool definitions, or "". `text` is plain
    text to continue; then `messages` is empty.
    """

    messages: list[Turn]
    tools: str
    text: str
    rejected: list[Turn]


@dataclass(frozen=True)
class Report:
    """What happened to a data set's rows.

    `form` is the most frequent form of the usable rows, and `forms` counts all. Of `rows` in total, `kept` are in the
    splits or left out by `Data.examples`, and `train` are in training. `broken` counts unusable rows by reason, with the
    number of the first one in `first_broken`, and `duplicates` counts repeated ones. `cut` conversations were kept
    without their last question, because it has no answer. `notes` counts kept rows by what was noticed or changed, and
    `unused` by the columns that have a value and are not used. `unread` names files of a folder that are not read with
    the others. `sources` has the reports of a mixture by name.
    """

    form: str
    rows: int
    kept: int
    broken: dict[str, int]
    duplicates: int
    cut: int
    train: int = 0
    forms: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    first_broken: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    sources: dict[str, Report] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """Three data sets of `Row`s. No row is in two of them. `validation` is empty unless `data.validation` is set."""

    train: datasets.Dataset
    validation: datasets.Dataset
    evaluation: datasets.Dataset
    report: Report


def load(data: Data) -> Split:
    """The data set that a recipe asks for. Raises LabError if it is not available or has no usable rows."""
    if data.name == "emoji" and not data.mixture:
        from training.data.emoji import dataset

        return dataset.load(data)
    from training.data import splitting

    return splitting.load(data)


def plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn as a chat message: {role, content}, and of the other fields those that do not have their default."""
    message = {"role": turn["role"], "content": turn["content"]}
    if turn.get("train", turn["role"] == "assistant") != (turn["role"] == "assistant"):
        message["train"] = turn["train"]
    return message | {name: turn[name] for name in ("reasoning", "tool_calls") if turn.get(name)}


def canonical(row: Mapping[str, Any]) -> Any:
    """What a `Row` holds, ready for JSON: a list of `plain` turns, or a mapping if it holds more than a conversation."""
    messages = [plain(turn) for turn in row["messages"]]
    more = {name: row[name] for name in ("tools", "text") if row.get(name)}
    if row.get("rejected"):
        more["rejected"] = [plain(turn) for turn in row["rejected"]]
    return {"messages": messages, **more} if more else messages


def fingerprint(rows: datasets.Dataset) -> str:
    """SHA-256 of a split's rows: runs with the same fingerprint saw the same data."""
    digest = hashlib.sha256(b"[")
    separator = ""
    for table in rows.with_format("arrow").iter(1000):  # three times as fast as row by row
        for row in table.to_pylist():
            digest.update((separator + json.dumps(canonical(row), ensure_ascii=False)).encode())
            separator = ", "
    digest.update(b"]")
    return digest.hexdigest()
