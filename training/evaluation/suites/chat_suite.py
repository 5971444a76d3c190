"""The chat suite: loss and answers on the held-out conversations of a recipe.

- *loss*: nats per token of the assistant's turns in the data, end-of-turn tokens included, given the turns before.
  This is the loss that training minimizes. *Perplexity* is exp(loss).
- *refusals*: share of answers that begin with a refusal. The phrases are those of Zou et al. 2023 (arXiv:2307.15043,
  section 3) that can open an answer, and "I don't know".
- *repetition*: share of an answer's 4-grams of words that occur earlier in it (seq-rep-4, Welleck et al. 2020,
  arXiv:1908.04319), averaged over answers.
- *length*: tokens of an answer, at most 256. *Cut off* is the share of answers that reach this limit.

Answers are greedy. The question is the last one of each conversation, after the turns before it in the data.
Conversations longer than the recipe's `max_length`, which training truncates, are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.engines import ENGINES, Message, Sampling
from inference.errors import LabError
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Measure, Record, Result, Unit, remove_duplicates
from training.recipe import Recipe

GREEDY = Sampling(temperature=0, max_tokens=256)
REFUSALS = (
    "i'm sorry", "i am sorry", "sorry", "i apologize", "my apologies", "as an ai", "as a language model",
    "as an assistant", "i'm just an", "i am just an", "i cannot", "i can't", "i can not", "i'm unable", "i am unable",
    "i'm not able", "i am not able", "i don't know", "i do not know",
)  # fmt: skip
RATES = {"refused": "refusals", "repetition": "repetition", "cut": "cut off"}
Conversation = list[Message]


class ChatSuite:
    """The evaluation split of `recipe`. Raises LabError if fewer than two conversations can be asked."""

    name = "chat"

    def __init__(self, recipe: Recipe) -> None:
        held_out, unlike_chat = evaluation_split(recipe)
        short = [messages for messages, tokens in held_out if tokens <= recipe.max_length]
        unique, self.notes = remove_duplicates(short, key, "conversations")
        self.questions: Mapping[str, Conversation] = unique
        self.notes.append(f"Chat: the evaluation split of {recipe.name} ({recipe.data.name}).")
        if unlike_chat:
            self.notes.append(f"{unlike_chat} rows that are no chat of a user and an assistant are left out.")
        if left_out := len(held_out) - len(short):
            self.notes.append(f"{left_out} conversations of more than {recipe.max_length} tokens are left out.")
        if len(self.questions) < 2:
            raise LabError(f"{recipe.name}: {self.notes[-1]} Fewer than two can be asked: raise data.evaluation.")

    def answer(self, model: ResolvedModel, question: Conversation, cancelled: Callable[[], bool]) -> Record:
        """See `Suite.answer`. The record has the loss if the engine can compute likelihoods."""
        record: Record = {}
        turns = [i for i, message in enumerate(question) if message["role"] == "assistant"]
        try:
            scored = [model.score(question[:i], question[i]["content"]) for i in turns]
            record["log_likelihood"] = sum(turn.log_likelihood for turn in scored)
            record["scored_tokens"] = sum(turn.tokens for turn in scored)
        except LabError as error:
            if ENGINES[model.engine_name].takes != "served":  # a server may not offer likelihoods
                raise
            record["unscored"] = str(error)
        text, figures = model.ask(question[: turns[-1]], GREEDY, cancelled)
        return record | {"answer": text, "tokens": figures.completion_tokens, "cut": figures.finish_reason == "length"}

    def judge(self, records: Mapping[str, Record]) -> Result:
        """See `Suite.judge`."""
        answers = [
            {"question": self.questions[key][-2]["content"], "expected": self.questions[key][-1]["content"], **record}
            | {"refused": is_refusal(str(record["answer"])), "repetition": repetition(str(record["answer"]))}
            for key, record in records.items()
        ]
        rows = dict(zip(records, answers, strict=True))
        measures = [measure(rows, column, metric, "share", "chat, shares") for column, metric in RATES.items()]
        measures.append(measure(rows, "tokens", "length", "tokens", "chat, length of an answer (tokens)"))
        unscored = [str(record["unscored"]) for record in records.values() if "unscored" in record]
        notes = [*self.notes, *([f"No loss: {unscored[0]}"] if unscored else [])]
        return Result(measures if unscored else [loss(rows), *measures], answers, notes)


def measure(rows: Mapping[str, Record], column: str, metric: str, unit: Unit, panel: str) -> Measure:
    """The metric of one column of the answers."""
    return Measure("chat", "", metric, unit, {k: row[column] for k, row in rows.items()}, panel=panel, bar=metric)


def loss(rows: Mapping[str, Record]) -> Measure:
    """The loss: nats of each conversation, over its tokens."""
    nats = {k: -float(row["log_likelihood"]) for k, row in rows.items()}
    tokens = {k: float(row["scored_tokens"]) for k, row in rows.items()}
    panel = "chat, held-out loss (nats per token)"
    return Measure("chat", "", "loss", "nats per token", nats, tokens, panel=panel, bar="loss")


def evaluation_split(recipe: Recipe) -> tuple[list[tuple[Conversation, int]], int]:
    """The held-out conversations, each up to its last answer, with their number of tokens in the chat template of the
    recipe's base; and how many rows an engine can't be asked: plain text, and turns with tools or reasoning.

    Raises LabError if the recipe has no evaluation split.
    """
    if not recipe.data.evaluation:
        raise LabError(f"{recipe.name} has no evaluation split: set data.evaluation, such as data.evaluation=200.")
    from training import data
    from training.finetune.base_model import load_tokenizer

    rows = data.load(recipe.data).evaluation
    chats = [row["messages"] for row in rows if not row["tools"] and is_chat(row["messages"])]
    held_out = [[Message(role=turn["role"], content=turn["content"]) for turn in chat] for chat in chats]
    encode: Any = load_tokenizer(recipe).apply_chat_template  # its annotation has no TypedDict
    return [(chat, len(encode(chat, return_dict=False))) for chat in held_out], len(rows) - len(chats)


def is_chat(turns: Sequence[Mapping[str, Any]]) -> bool:
    """Whether turns are a question and its answer at the end, and text of system, user and assistant only."""
    roles = [turn["role"] for turn in turns]
    return (
        roles[-2:] == ["user", "assistant"]
        and set(roles) <= {"system", "user", "assistant"}
        and not any(turn["reasoning"] or turn["tool_calls"] for turn in turns)
    )


def key(messages: Conversation) -> str:
    """64 bits of SHA-256 of all turns but the last answer: conversations that differ in it alone are duplicates."""
    return hashlib.sha256(json.dumps(messages[:-1], ensure_ascii=False).encode()).hexdigest()[:16]


def is_refusal(answer: str) -> bool:
    """Whether an answer begins with a refusal."""
    return answer.strip().lower().replace("’", "'").startswith(REFUSALS)


def repetition(answer: str, n: int = 4) -> float:
    """seq-rep-n: 1 - distinct n-grams of words / n-grams. It is 0 for an answer of fewer than n words."""
    words = answer.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
