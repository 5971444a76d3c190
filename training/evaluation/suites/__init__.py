"""What a suite is: questions to ask a served model, and what is measured on each answer. One file, one suite.

`emoji.py` asks what an emoji means, `chat.py` the evaluation split of a recipe; `harness.py` beside this package brings
in lm-evaluation-harness's tasks. A suite knows no files: `asking.py` asks and keeps the answers, `report.py` shows what
came of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

from training.evaluation.resolve_model import ResolvedModel

Record = dict[str, object]  # an answer as it is kept: JSON's types only
Unit = Literal["share", "nats per token", "tokens", "score"]
Question = TypeVar("Question")
SUITES = ("emoji", "chat")


@dataclass(frozen=True)
class Measure:
    """One number for each question of a group, by the question's key: bools for right and wrong. A loss has `weights`,
    the tokens that its nats are summed over. Models are compared on what is `compared`; bars of one `panel` share an
    axis of the chart, "" is not drawn."""

    suite: str
    group: str
    metric: str
    unit: Unit
    values: Mapping[str, bool | float]
    weights: Mapping[str, float] | None = None
    compared: bool = True
    panel: str = ""
    bar: str = ""


@dataclass(frozen=True)
class Result:
    """What came of one suite: the judged answers in the questions' order, what was measured on them, and remarks."""

    measures: list[Measure]
    answers: list[Record]
    notes: list[str] = field(default_factory=list)


class Suite(Protocol):
    """Questions by key, how one is answered, and what the answers are worth."""

    name: str
    questions: Mapping[str, object]
    notes: list[str]

    def answer(self, served: ResolvedModel, question: object, cancelled: Callable[[], bool]) -> Record:
        """The model's answer to one question, unjudged. Raises LabError where the model gives none."""

    def judge(self, records: Mapping[str, Record]) -> Result:
        """What the answers to the questions in `records` are worth."""


def once(questions: Iterable[Question], key: Callable[[Question], Hashable], what: str) -> tuple[dict, list[str]]:
    """The questions by key, and a remark where some are there more than once: each counts once."""
    by_key: dict[Hashable, Question] = {}
    twice = 0
    for question in questions:
        twice += key(question) in by_key
        by_key.setdefault(key(question), question)
    return by_key, [f"{twice} of the {what} are there more than once: each counts once."] if twice else []
