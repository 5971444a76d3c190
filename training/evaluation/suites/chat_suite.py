"""The chat suite: the conversations that a recipe keeps apart, as loss and as answers.

- *loss*: nats per token of the assistant's turns as they are written, the closing end-of-turn token included, each
  after the true turns before it: what training lowers. *Perplexity* is e to its power.
- *refusals*: share of answers that begin as refusals do. The phrases are those of Zou et al. 2023 (arXiv:2307.15043,
  section 3) that can open an answer, and "I don't know".
- *repetition*: share of an answer's 4-grams of words that stood in it before (seq-rep-4, Welleck et al. 2020,
  arXiv:1908.04319), averaged over answers.
- *length*: tokens of an answer; it is cut at 256, and *cut off* is the share of answers that were.

Answers are greedy, to the last question of each conversation after the true turns before it. Conversations longer than
the recipe's `max_length`, which training cuts, are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from inference.engines import ENGINES, Message, Sampling
from inference.errors import LabError
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Measure, Record, Result, Unit, once
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
    """The evaluation split of `recipe`. Raises LabError where it has fewer than two conversations to ask."""

    name = "chat"

    def __init__(self, recipe: Recipe) -> None:
        held_out = evaluation_split(recipe)
        short = [messages for messages, tokens in held_out if tokens <= recipe.max_length]
        self.questions, self.notes = once(short, key, "conversations")
        self.notes.append(f"Chat: the evaluation split of {recipe.name} ({recipe.data.name}).")
        if left_out := len(held_out) - len(short):
            self.notes.append(f"{left_out} conversations of more than {recipe.max_length} tokens are left out.")
        if len(self.questions) < 2:
            raise LabError(f"{recipe.name}: {self.notes[-1]} Fewer than two are left to ask: raise data.evaluation.")

    def answer(self, served: ResolvedModel, question: Conversation, cancelled: Callable[[], bool]) -> Record:
        """See `Suite.answer`; the loss first, where the engine tells likelihoods."""
        record: Record = {}
        turns = [i for i, message in enumerate(question) if message["role"] == "assistant"]
        try:
            scored = [served.score(question[:i], question[i]["content"]) for i in turns]
            record["log_likelihood"] = sum(turn.log_likelihood for turn in scored)
            record["scored_tokens"] = sum(turn.tokens for turn in scored)
        except LabError as error:
            if ENGINES[served.engine_name].takes != "served":  # else it is the server that doesn't tell them
                raise
            record["unscored"] = str(error)
        text, figures = served.ask(question[: turns[-1]], GREEDY, cancelled)
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
    """One column of the answers."""
    return Measure("chat", "", metric, unit, {k: row[column] for k, row in rows.items()}, panel=panel, bar=metric)


def loss(rows: Mapping[str, Record]) -> Measure:
    """Nats by conversation, over its tokens."""
    nats = {k: -float(row["log_likelihood"]) for k, row in rows.items()}
    tokens = {k: float(row["scored_tokens"]) for k, row in rows.items()}
    panel = "chat, held-out loss (nats per token)"
    return Measure("chat", "", "loss", "nats per token", nats, tokens, panel=panel, bar="loss")


def evaluation_split(recipe: Recipe) -> list[tuple[Conversation, int]]:
    """The conversations that training never had, each up to its last answer, and how many tokens each is in the chat
    template of the recipe's base."""
    if not recipe.data.evaluation:
        raise LabError(f"{recipe.name} keeps no evaluation split: set data.evaluation, such as data.evaluation=200.")
    from training import data
    from training.finetune.base_model import load_tokenizer

    held_out = list(data.load(recipe.data).evaluation["messages"])
    tokenizer = load_tokenizer(recipe)
    return [(messages, len(tokenizer.apply_chat_template(messages, return_dict=False))) for messages in held_out]


def key(messages: Conversation) -> str:
    """What is asked, as 64 bits of SHA-256: two conversations that differ in the last answer only ask the same."""
    return hashlib.sha256(json.dumps(messages[:-1], ensure_ascii=False).encode()).hexdigest()[:16]


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as refusals do."""
    return answer.strip().lower().replace("’", "'").startswith(REFUSALS)


def repetition(answer: str, n: int = 4) -> float:
    """seq-rep-n: 1 - distinct n-grams of words / n-grams; 0 for an answer of fewer than n words."""
    words = answer.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
