"""Reads a data set by name: brings its rows into one form, checks them, removes duplicates, splits them.

The name is a Hub data set (`mlabonne/FineTome-100k`), a JSON Lines, JSON, Parquet or CSV file, or a folder of them. Rows
may be `messages`, ShareGPT's `conversations`, Alpaca's `instruction`, `input` and `output`, or pairs in two columns; the
columns tell which. Unusable rows are counted by reason. The trainer and `data_card.py` count tokens, not this module.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from inference.errors import LabError
from training.data import Message, Report, Split
from training.data.rows import FEATURES, conversation
from training.data.source import local_path, read_rows, translate_read_errors

if TYPE_CHECKING:
    from training.recipe import Data

CHECKED_FEATURES = datasets.Features(
    {**FEATURES, "problem": datasets.Value("string"), "cut": datasets.Value("bool"), "digest": datasets.Value("int64")}
)
ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class RowFormat:
    """A format of rows: one column with a list of turns, or two columns with a question and its answer.

    Two more columns are optional: `system`, the system prompt, and `input`, which continues the question of a pair.
    """

    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        columns = " and ".join(self.columns)
        return columns if columns == self.name else f"{columns} ({self.name})"


FORMATS = (
    RowFormat("messages", ("messages",)),
    RowFormat("ShareGPT", ("conversations",)),
    RowFormat("ShareGPT", ("conversation",)),
    RowFormat("Alpaca", ("instruction", "output")),
    RowFormat("prompt and response", ("prompt", "response")),
    RowFormat("question and answer", ("question", "answer")),
)


class BrokenRow(Exception):
    """A row that can't be used; the message is the reason."""


def load(data: Data) -> Split:
    """The data set `data.name`, without duplicates, split. Raises LabError if it is not available or has no usable rows.

    A hash of its content and `data.seed` decides where a conversation goes. So neither the order of the rows nor
    `data.examples` moves a conversation, and a smaller training split is a part of a larger one.
    """
    path = local_path(data.name)
    with translate_read_errors(data.name, path):
        raw = read_rows(data.name, path)
        row_format = detect_format(data.name, raw.column_names)
        rows = check_rows(raw, row_format)
    problems, digests, cut = (np.array(rows.with_format("numpy")[name][:]) for name in ("problem", "digest", "cut"))
    usable = np.flatnonzero(problems == "")
    broken = dict(Counter(problems[problems != ""].tolist()).most_common())
    if not usable.size:
        reason, count = next(iter(broken.items()))
        raise LabError(
            f"No row of {data.name} can be used, most often because of {reason} ({count:,} of {len(rows):,}), read as "
            f"{row_format}: fix the rows, or name another data set."
        )
    kept = usable[np.unique(digests[usable], return_index=True)[1]]
    order = sorted(kept.tolist(), key=lambda i: hashlib.sha256(f"{data.seed}:{digests[i]}".encode()).digest())
    if len(order) <= data.evaluation:
        raise LabError(
            f"{data.name} has {len(order):,} usable conversations, and data.evaluation holds out {data.evaluation:,}: "
            f"set it lower, such as data.evaluation={len(order) // 10}."
        )
    end = None if data.examples is None else data.evaluation + data.validation + data.examples
    report = Report(
        form=row_format.name, rows=len(rows), kept=len(order), broken=broken, duplicates=len(usable) - len(kept),
        cut=int(cut[kept].sum()),
    )  # fmt: skip
    held_out, columns = data.evaluation + data.validation, rows.select_columns(list(FEATURES))
    return Split(
        train=columns.select(order[held_out:end]),
        validation=columns.select(order[data.evaluation : held_out]),
        evaluation=columns.select(order[: data.evaluation]),
        report=report,
    )


def detect_format(name: str, columns: list[str]) -> RowFormat:
    """The format of a data set with these columns. Raises LabError if there is none."""
    for row_format in FORMATS:
        if set(row_format.columns) <= set(columns):
            return row_format
    known = "; ".join(map(str, FORMATS))
    raise LabError(f"{name} has the columns {', '.join(columns)}, which fit no format: rename them to one of {known}.")


def check_rows(raw: datasets.Dataset, row_format: RowFormat) -> datasets.Dataset:
    """The rows in one form, with the columns of `CHECKED_FEATURES`.

    `messages` is the conversation, `problem` the reason why the row can't be used (or ""), `cut` whether a last question
    was left out, and `digest` the conversation's `content_digest`.
    """
    used = [column for column in (*row_format.columns, "input", "system") if column in raw.column_names]
    return raw.select_columns(used).map(
        check_batch,
        batched=True,
        # datasets caches the result under a hash of the arguments. It hashes functions of a module by name only, so the
        # text of this file is an argument: after a change of the code, the old result isn't used.
        fn_kwargs={"row_format": row_format, "code": Path(__file__).read_text(encoding="utf-8")},
        remove_columns=used,
        features=CHECKED_FEATURES,
        desc=f"{row_format.name} rows",
    )


def check_batch(batch: dict[str, list[Any]], row_format: RowFormat, code: str) -> dict[str, list[Any]]:
    """The columns of `CHECKED_FEATURES` for a batch of rows."""
    result: dict[str, list[Any]] = {name: [] for name in CHECKED_FEATURES}
    for values in zip(*batch.values(), strict=True):
        messages: list[Message] = []
        problem, cut = "", False
        try:
            messages, cut = normalize_conversation(row_turns(dict(zip(batch, values, strict=True)), row_format))
        except BrokenRow as error:
            problem = str(error)
        checked = {**conversation(messages), "problem": problem, "cut": cut, "digest": content_digest(messages)}
        for name, value in checked.items():
            result[name].append(value)
    return result


def row_turns(row: dict[str, Any], row_format: RowFormat) -> Any:
    """A row's turns as they were written, after the row's system prompt; a pair becomes two turns."""
    if len(row_format.columns) == 1:
        turns = row[row_format.columns[0]]
    else:
        question, answer = (row[column] for column in row_format.columns)
        if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"].strip():
            question = f"{question}\n\n{row['input']}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if row.get("system") and isinstance(turns, list):
        return [{"role": "system", "content": row["system"]}, *turns]
    return turns


def normalize_conversation(turns: Any) -> tuple[list[Message], bool]:
    """The turns as messages, and whether a last question without an answer was left out. Raises BrokenRow.

    An empty system prompt is dropped: many data sets have that field in each row.
    """
    if not isinstance(turns, list):
        raise BrokenRow("no list of turns")
    messages = [normalize_message(turn) for turn in turns]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    roles = [m["role"] for m in messages]
    if not all(m["content"].strip() for m in messages):
        raise BrokenRow("an empty turn")
    if "assistant" not in roles:
        raise BrokenRow("no assistant turn")
    if any(before == after for before, after in pairwise(roles)):
        raise BrokenRow("two turns of one role in a row")
    if "system" in roles[1:]:
        raise BrokenRow("a system turn after the first")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise BrokenRow("a first turn of the assistant")
    answered = len(roles) if roles[-1] == "assistant" else len(roles) - 1
    return messages[:answered], answered < len(roles)


def normalize_message(turn: Any) -> Message:
    """One turn, {role, content} or ShareGPT's {from, value}, as a message. Raises BrokenRow."""
    if not isinstance(turn, dict):
        raise BrokenRow("a turn that is not text")
    role = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BrokenRow("an unknown role")
    if content is not None and not isinstance(content, str):
        raise BrokenRow("a turn that is not text")
    return {"role": ROLES[role.lower()], "content": content or ""}


def content_digest(messages: list[Message]) -> int:
    """64 bits of SHA-256 over roles and words, as int64. Conversations that differ only in white space are equal.

    Among ten million conversations, two share a digest by chance with a probability of 3e-6.
    """
    words = json.dumps([[m["role"], " ".join(m["content"].split())] for m in messages])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big", signed=True)
