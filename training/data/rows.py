"""Makes rows of the form `training.data.Row`, and the data sets that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets

from training.data import Message, Row, Turn

TURN = {
    "role": datasets.Value("string"),
    "content": datasets.Value("string"),
    "train": datasets.Value("bool"),
    "reasoning": datasets.Value("string"),
    "tool_calls": datasets.Value("string"),
}
FEATURES = datasets.Features(
    {"messages": [TURN], "tools": datasets.Value("string"), "text": datasets.Value("string"), "rejected": [TURN]}
)


def turn(role: str, content: str, train: bool | None = None, reasoning: str = "", tool_calls: str = "") -> Turn:
    """One turn; by default a run learns it if its role is assistant."""
    learnt = role == "assistant" if train is None else train
    return {"role": role, "content": content, "train": learnt, "reasoning": reasoning, "tool_calls": tool_calls}


def row(messages: Sequence[Turn] = (), tools: str = "", text: str = "", rejected: Sequence[Turn] = ()) -> Row:
    """One row."""
    return {"messages": list(messages), "tools": tools, "text": text, "rejected": list(rejected)}


def conversation(messages: Iterable[Message]) -> Row:
    """The row of a conversation that consists of {role, content}."""
    return row([turn(message["role"], message["content"]) for message in messages])


def to_dataset(rows: Iterable[Row]) -> datasets.Dataset:
    """A data set of rows, in memory."""
    dicts = [dict(row) for row in rows]  # `from_list` takes no empty list
    return datasets.Dataset.from_dict({name: [row[name] for row in dicts] for name in FEATURES}, features=FEATURES)


def rejected_conversation(row: Mapping[str, Any]) -> list[Turn]:
    """Of a row of preference data, the prompt with the rejected answer. The prompt ends before the first learnt turn."""
    answer = next((i for i, turn in enumerate(row["messages"]) if turn["train"]), len(row["messages"]))
    return [*row["messages"][:answer], *row["rejected"]]
