"""The emoji suite: what an emoji means and which emoji means a thing, in phrasings that training never had.

Two scores for each answer, both shares of right ones:

- *exact*: the answer is what the data set would say, word for word, or nothing but the name or the emoji.
- *lenient*: the name stands in it as whole words, case aside, or the emoji and no other one (`Question.is_right`). To
  a choice of two, the wrong one must not be named.

Flags, other emoji and confusable pairs are counted apart, and so are emoji that no training example is about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

from inference.engines import Message, Sampling
from training.data.emoji.dataset import Question, answer, bare, emoji_in, questions
from training.data.emoji.unicode import emoji_table
from training.data.emoji.unknown import UNKNOWN
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Measure, Record, Result, once

GREEDY = Sampling(temperature=0, max_tokens=64)
DIRECTIONS = {"name": "naming", "find": "finding"}
Confusion = tuple[str, str, int]  # expected, given, how often


class EmojiSuite:
    """The questions of `training.data.emoji.dataset`, or others of their kind."""

    name = "emoji"

    def __init__(self, asked: list[Question] | None = None) -> None:
        self.questions, self.notes = once(asked or questions(), lambda q: q.text, "emoji questions")

    def answer(self, served: ResolvedModel, question: Question, cancelled: Callable[[], bool]) -> Record:
        """See `Suite.answer`: greedily, at most 64 tokens."""
        text, _ = served.ask([Message(role="user", content=question.text)], GREEDY, cancelled)
        return {"answer": text}

    def judge(self, records: Mapping[str, Record]) -> Result:
        """See `Suite.judge`."""
        asked = [self.questions[key] for key in records]
        answers = [judged(q, str(record["answer"])) for q, record in zip(asked, records.values(), strict=True)]
        groups = sorted({str(row["group"]) for row in answers})
        measures = [
            measure(name, metric, [row for row in answers if kept(row)], name in groups and metric != "unsure")
            for name, kept in selections(groups, answers)
            for metric in ("exact", "lenient", *(("unsure",) if name in groups else ()))
        ]
        return Result(measures, answers, self.notes)


def measure(group: str, metric: str, rows: list[Record], compared: bool) -> Measure:
    """One score of a group's answers; the whole groups are compared and drawn, their directions only counted."""
    values = {str(row["question"]): bool(row[metric]) for row in rows}
    panel = f"emoji, {metric}: share of right answers" if compared else ""
    return Measure("emoji", group, metric, "share", values, compared=compared, panel=panel, bar=group)


def selections(groups: list[str], answers: list[Record]) -> list[tuple[str, Callable[[Record], bool]]]:
    """What is counted: each group, then each group's two directions."""
    whole = [(name, lambda row, name=name: row["group"] == name) for name in groups]
    parts = sorted({(str(row["group"]), str(row["direction"])) for row in answers if row["direction"]})
    return whole + [
        (f"{group}: {direction}", lambda row, part=(group, direction): (row["group"], row["direction"]) == part)
        for group, direction in parts
    ]


def judged(question: Question, given: str) -> Record:
    """One answer with its scores."""
    return {
        "question": question.text,
        "about": question.emoji.name,
        "expected": question.expected,
        "answer": given,
        "group": group(question),
        "direction": DIRECTIONS.get(question.kind, ""),
        "exact": is_exact(question, given),
        "lenient": question.is_right(given),
        "unsure": given.strip() == UNKNOWN,
        "given": named(question, given),
    }


def group(question: Question) -> str:
    """What a question is counted under."""
    if question.kind == "choice":
        return "pairs"
    what = "flags" if question.emoji.is_flag else "other emoji"
    return what if question.seen else f"{what}, never seen"


def is_exact(question: Question, given: str) -> bool:
    """Whether the answer is the data set's own sentence, or the name or emoji alone; variation selectors aside."""
    return bare(given.strip()) in {bare(answer(question.emoji, question.kind)), bare(question.expected)}


@cache
def _names() -> tuple[re.Pattern[str], dict[str, str], dict[str, str]]:
    names = {e.name.lower(): e.name for e in emoji_table()}
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)", re.IGNORECASE), names, {
        bare(e.text): e.name for e in emoji_table()
    }  # fmt: skip


def named(question: Question, given: str) -> str:
    """What an answer gives, as an emoji's name: the first one in it, or those of the emoji in it."""
    if given.strip() == UNKNOWN:
        return "“I don't know”"
    pattern, names, by_emoji = _names()
    if question.kind == "find":
        return " and ".join(sorted(by_emoji[text] for text in emoji_in(given))) or "no emoji"
    found = pattern.search(given)
    return names[found[0].lower()] if found else "no emoji's name"


def misses(answers: list[Record]) -> list[Record]:
    """The answers that are wrong by the lenient score."""
    return [row for row in answers if not row["lenient"]]


def confusions(answers: list[Record]) -> list[Confusion]:
    """What was given for what, over the misses, most frequent first."""
    counted = Counter((str(row["about"]), str(row["given"])) for row in misses(answers))
    return sorted(((*pair, n) for pair, n in counted.items()), key=lambda item: (-item[2], item[:2]))
