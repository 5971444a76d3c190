"""What a suite is: questions for a model, and what is measured on each answer. One file, one suite.

`emoji_suite.py` asks what an emoji means, `chat_suite.py` asks the evaluation split of a recipe. `harness.py` beside
this package adds the tasks of lm-evaluation-harness. `run_suite.py` asks the questions and saves the answers,
`evaluation_report.py` shows the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from training.evaluation.resolve_model import ResolvedModel

Record = dict[str, Any]  # an answer as it is saved: JSON's types only
Unit = Literal["share", "nats per token", "tokens", "score"]
Question = TypeVar("Question")
SUITES = ("emoji", "chat")


@dataclass(frozen=True)
class Measure:
    """One metric of a group of questions.

    Attributes:
        suite, group, metric: what is measured. `group` can be "".
        unit: the unit of the metric's mean.
        values: a number for each question, by the question's key; bools for right and wrong.
        weights: of a loss, the number of tokens that each value (nats) is summed over.
        compared: whether models are compared by this metric.
        panel: the chart's panel; "" is not drawn. Bars of one panel share an axis.
        bar: the bar's name in the panel.
    """

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
    """The result of one suite: metrics, judged answers in the order of the questions, and notes for the report."""

    measures: list[Measure]
    answers: list[Record]
    notes: list[str] = field(default_factory=list)


class Suite(Protocol):
    """Questions by key, how a model answers one, and how answers are judged."""

    name: str
    questions: Mapping[str, Any]
    notes: list[str]

    def answer(self, model: ResolvedModel, question: Any, cancelled: Callable[[], bool]) -> Record:
        """The model's answer to one question, not judged. Raises LabError if the model does not answer."""

    def judge(self, records: Mapping[str, Record]) -> Result:
        """Judge the answers to the questions in `records`."""


def remove_duplicates(
    questions: Iterable[Question], key: Callable[[Question], str], description: str
) -> tuple[dict[str, Question], list[str]]:
    """The questions by key, and a note if some occur more than once: each counts once."""
    by_key: dict[str, Question] = {}
    duplicates = 0
    for question in questions:
        duplicates += key(question) in by_key
        by_key.setdefault(key(question), question)
    return by_key, [f"{duplicates} of the {description} occur more than once: each counts once."] if duplicates else []
