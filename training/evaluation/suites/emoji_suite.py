"""The emoji suite: what an emoji means and which emoji means a thing.

The phrasings do not occur in the training data.

Each answer gets two scores:

- *exact*: the answer is the data set's own sentence, or the name or the emoji alone.
- *lenient*: the answer contains the name as complete words in any case, or the emoji and no other one
  (`Question.is_right`). If the question is a choice of two, the wrong one must not be in the answer.

Flags, other emoji and confusable pairs are separate groups. So are emoji that no training example is about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache

from inference.engines import Message, Sampling
from training.data.emoji.dataset import answer, bare, emoji_in
from training.data.emoji.questions import Question, questions
from training.data.emoji.unicode import emoji_table
from training.data.emoji.unknown import UNKNOWN
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Measure, Record, Result, remove_duplicates

GREEDY = Sampling(temperature=0, max_tokens=64)
DIRECTIONS = {"name": "naming", "find": "finding"}
Confusion = tuple[str, str, int]  # expected, given, how often


class EmojiSuite:
    """The questions of `training.data.emoji.questions`, or other questions of the same type."""

    name = "emoji"

    def __init__(self, chosen: list[Question] | None = None) -> None:
        unique, self.notes = remove_duplicates(chosen or questions(), lambda q: q.text, "emoji questions")
        self.questions: Mapping[str, Question] = unique

    def answer(self, model: ResolvedModel, question: Question, cancelled: Callable[[], bool]) -> Record:
        """See `Suite.answer`. The answer is greedy and has at most 64 tokens."""
        text, _ = model.ask([Message(role="user", content=question.text)], GREEDY, cancelled)
        return {"answer": text}

    def judge(self, records: Mapping[str, Record]) -> Result:
        """See `Suite.judge`."""
        answers = [judge_answer(self.questions[key], str(record["answer"])) for key, record in records.items()]
        groups = sorted({str(row["group"]) for row in answers})
        measures = [
            measure(name, metric, rows, name in groups and metric != "unsure")
            for name, rows in group_answers(groups, answers).items()
            for metric in ("exact", "lenient", *(("unsure",) if name in groups else ()))
        ]
        return Result(measures, answers, self.notes)


def measure(group: str, metric: str, rows: list[Record], compared: bool) -> Measure:
    """One score of a group's answers. Only complete groups are compared and drawn, not their directions."""
    values = {str(row["question"]): bool(row[metric]) for row in rows}
    panel = f"emoji, {metric}: share of right answers" if compared else ""
    return Measure("emoji", group, metric, "share", values, compared=compared, panel=panel, bar=group)


def group_answers(groups: list[str], answers: list[Record]) -> dict[str, list[Record]]:
    """The answers of each group, then those of each group's two directions."""
    parts = sorted({(str(row["group"]), str(row["direction"])) for row in answers if row["direction"]})
    found = {name: [row for row in answers if row["group"] == name] for name in groups}
    return found | {
        f"{group}: {direction}": [row for row in answers if (row["group"], row["direction"]) == (group, direction)]
        for group, direction in parts
    }


def judge_answer(question: Question, given: str) -> Record:
    """An answer with its scores."""
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
        "given": named_emoji(question, given),
    }


def group(question: Question) -> str:
    """The group of a question."""
    if question.kind == "choice":
        return "pairs"
    what = "flags" if question.emoji.is_flag else "other emoji"
    return what if question.seen else f"{what}, never seen"


def is_exact(question: Question, given: str) -> bool:
    """Whether the answer is the data set's own sentence, or the name or emoji alone. Ignores variation selectors."""
    return bare(given.strip()) in {bare(answer(question.emoji, question.kind)), bare(question.expected)}


@cache
def _names() -> tuple[re.Pattern[str], dict[str, str], dict[str, str]]:
    names = {e.name.lower(): e.name for e in emoji_table()}
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:{longest_first})(?!\w)", re.IGNORECASE), names, {
        bare(e.text): e.name for e in emoji_table()
    }  # fmt: skip


def named_emoji(question: Question, given: str) -> str:
    """The name of the emoji that an answer gives: the first name in it, or the names of the emoji in it."""
    if given.strip() == UNKNOWN:
        return "“I don't know”"
    pattern, names, by_emoji = _names()
    if question.kind == "find":
        return " and ".join(sorted(by_emoji[text] for text in emoji_in(given))) or "no emoji"
    found = pattern.search(given)
    return names[found[0].lower()] if found else "no emoji's name"


def wrong_answers(answers: list[Record]) -> list[Record]:
    """The answers that are wrong by the lenient score."""
    return [row for row in answers if not row["lenient"]]


def confusions(answers: list[Record]) -> list[Confusion]:
    """Expected and given names of the wrong answers, most frequent first."""
    counted = Counter((str(row["about"]), str(row["given"])) for row in wrong_answers(answers))
    return sorted(((*pair, n) for pair, n in counted.items()), key=lambda item: (-item[2], item[:2]))
