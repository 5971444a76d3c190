"""A data set of conversations by name: read, brought into one normal form, checked, deduplicated, split.

In: a Hub data set (`mlabonne/FineTome-100k`), a JSON Lines, Parquet or CSV file, or a folder of them. Rows may be
`messages`, ShareGPT's `conversations`, Alpaca's `instruction`, `input` and `output`, or pairs of two columns; the
columns tell which. Out: `Split` with Arrow data sets of one column, `messages`. A row that can't be used is counted by
reason, never silently kept. Tokens are `summary.py`'s and the trainer's matter, the emoji data set is `emoji.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets.fingerprint import Hasher

from inference.errors import LabError
from training.data import Message, Report, Split
from training.data.source import local_path, read, translate_read_errors

if TYPE_CHECKING:
    from training.recipe import Data

FEATURES = datasets.Features({"messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]})
ROLES = {
    "system": "system", "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What rows look like: one column with a list of turns, or two with a question and its answer. There may be
    `system`, the system prompt, and beside a pair `input`, more of the question."""

    name: str
    columns: tuple[str, ...]

    def __str__(self) -> str:
        columns = " and ".join(self.columns)
        return columns if columns == self.name else f"{columns} ({self.name})"


FORMS = (
    Form("messages", ("messages",)),
    Form("ShareGPT", ("conversations",)),
    Form("ShareGPT", ("conversation",)),
    Form("Alpaca", ("instruction", "output")),
    Form("prompt and response", ("prompt", "response")),
    Form("question and answer", ("question", "answer")),
)


class Broken(Exception):
    """A row that can't be used; the message is the reason."""


def load(data: Data) -> Split:
    """The data set `data.name`, deduplicated and split. Raises LabError where it can't be had or has nothing usable.

    A conversation's place is decided by a hash of its content and `data.seed`: neither the order of the rows nor
    `data.examples` moves it, and a smaller training split is a part of a larger one.
    """
    path = local_path(data.name)
    with translate_read_errors(data.name, path):
        raw = read(data.name, path)
        form = form_of(data.name, raw.column_names)
        rows = normalize(raw, form)
    problems = np.array(rows.with_format("numpy")["problem"][:])
    digests = np.array(rows.with_format("numpy")["digest"][:])
    whole = np.flatnonzero(problems == "")
    broken = dict(Counter(problems[problems != ""].tolist()).most_common())
    if not whole.size:
        reason, count = next(iter(broken.items()))
        raise LabError(
            f"No row of {data.name} can be used, most often because of {reason} ({count:,} of {len(rows):,}), read as "
            f"{form}: mend the rows, or name another data set."
        )
    _, first = np.unique(digests[whole], return_index=True)
    kept = whole[first]
    order = sorted(kept.tolist(), key=lambda i: hashlib.sha256(f"{data.seed}:{digests[i]}".encode()).digest())
    if len(order) <= data.evaluation:
        raise LabError(
            f"{data.name} has {len(order):,} usable conversations, and data.evaluation keeps {data.evaluation:,} apart: "
            f"set it lower, such as data.evaluation={len(order) // 10}."
        )
    end = None if data.examples is None else data.evaluation + data.examples
    report = Report(
        form=form.name, rows=len(rows), kept=len(order), broken=broken, duplicates=len(whole) - len(kept),
        cut=int(np.array(rows.with_format("numpy")["cut"][:])[kept].sum()),
    )  # fmt: skip
    messages = rows.select_columns(["messages"])
    return Split(messages.select(order[data.evaluation : end]), messages.select(order[: data.evaluation]), report)


def form_of(name: str, columns: list[str]) -> Form:
    """The form that a data set with these columns is in."""
    for form in FORMS:
        if set(form.columns) <= set(columns):
            return form
    known = "; ".join(map(str, FORMS))
    raise LabError(f"{name} has the columns {', '.join(columns)}, no known form: rename them to one of {known}.")


def normalize(raw: datasets.Dataset, form: Form) -> datasets.Dataset:
    """Per row: `messages`; `problem`, why it can't be used, or ""; `cut`, whether a last turn was left out; `digest` of
    what it says, white space aside (64 bits: among ten million rows, a chance of 3e-6 that two share one)."""
    used = [column for column in (*form.columns, "input", "system") if column in raw.column_names]

    def normal_rows(batch: dict[str, list]) -> dict[str, list]:
        result: dict[str, list] = {"messages": [], "problem": [], "cut": [], "digest": []}
        for values in zip(*(batch[column] for column in used), strict=True):
            messages, problem, cut = [], "", False
            try:
                messages, cut = conversation(turns_of(dict(zip(used, values, strict=True)), form))
            except Broken as error:
                problem = str(error)
            for key, value in zip(result, (messages, problem, cut, digest(messages)), strict=True):
                result[key].append(value)
        return result

    return raw.select_columns(used).map(
        normal_rows,
        batched=True,
        remove_columns=used,
        features=datasets.Features(
            {
                **FEATURES, "problem": datasets.Value("string"), "cut": datasets.Value("bool"),
                "digest": datasets.Value("int64"),
            }
        ),
        # The cache would know these functions by name only, and hand out what an older version of this file made.
        new_fingerprint=Hasher.hash([raw._fingerprint, form, Path(__file__).read_text(encoding="utf-8")]),
        desc=f"{form.name} rows",
    )  # fmt: skip


def turns_of(row: dict[str, object], form: Form) -> object:
    """A row's turns, as they stand there or as a pair makes them, after the row's system prompt."""
    if len(form.columns) == 1:
        turns = row[form.columns[0]]
    else:
        question, answer = (row[column] for column in form.columns)
        if isinstance(question, str) and isinstance(row.get("input"), str) and row["input"].strip():
            question = f"{question}\n\n{row['input']}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if row.get("system") and isinstance(turns, list):
        return [{"role": "system", "content": row["system"]}, *turns]
    return turns


def conversation(turns: object) -> tuple[list[Message], bool]:
    """The turns in normal form, and whether a last question that nobody answers was left out. Raises Broken.

    An empty system prompt is none; many data sets have the field in each row.
    """
    if not isinstance(turns, list):
        raise Broken("no list of turns")
    messages = [message(turn) for turn in turns]
    if messages and messages[0]["role"] == "system" and not messages[0]["content"].strip():
        messages = messages[1:]
    roles = [m["role"] for m in messages]
    if not all(m["content"].strip() for m in messages):
        raise Broken("an empty turn")
    if "assistant" not in roles:
        raise Broken("no assistant turn")
    if any(before == after for before, after in pairwise(roles)):
        raise Broken("two turns of one role in a row")
    if "system" in roles[1:]:
        raise Broken("a system turn after the first")
    if roles[0] == "assistant" or roles[:2] == ["system", "assistant"]:
        raise Broken("a first turn of the assistant")
    answered = len(roles) if roles[-1] == "assistant" else len(roles) - 1
    return messages[:answered], answered < len(roles)


def message(turn: object) -> Message:
    """One turn, {role, content} or ShareGPT's {from, value}, in normal form. Raises Broken."""
    if not isinstance(turn, dict):
        raise Broken("a turn that is not text")
    role = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Broken("an unknown role")
    if content is not None and not isinstance(content, str):
        raise Broken("a turn that is not text")
    return {"role": ROLES[role.lower()], "content": content or ""}


def digest(messages: list[Message]) -> int:
    """64 bits of SHA-256 over roles and words: conversations that differ in white space only have the same."""
    words = json.dumps([[m["role"], " ".join(m["content"].split())] for m in messages])
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big", signed=True)
