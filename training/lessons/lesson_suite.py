"""Asks the lessons in wordings that were not taught, and judges the answers.

An answer is right if it contains the words that the lesson demands (`must_say`), or else the whole better answer. Case,
punctuation and spaces do not matter. A right answer in other words counts as wrong, so a lesson with a long answer
should name the words that matter.
"""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from inference.engines import Message, Sampling
from inference.lessons.lessons import Lesson
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Measure, Record, Result
from training.lessons.phrasings import HELD_OUT, held_out

GREEDY = Sampling(temperature=0, max_tokens=256)
QUESTIONS = 240  # about as many are asked; of more lessons, a sample


@dataclass(frozen=True)
class LessonQuestion:
    """One wording of a lesson's question."""

    lesson: Lesson
    text: str

    @property
    def messages(self) -> list[Message]:
        """What a model is asked."""
        return [*cast("tuple[Message, ...]", self.lesson.context), Message(role="user", content=self.text)]


class LessonSuite:
    """The lessons as a suite: see `training.evaluation.suites.Suite`."""

    name = "lessons"

    def __init__(self, lessons: list[Lesson]) -> None:
        asked = lessons if len(lessons) <= QUESTIONS else random.Random(0).sample(lessons, QUESTIONS)
        number = max(1, min(len(HELD_OUT), QUESTIONS // len(asked)))
        self.notes: list[str] = []
        if len(asked) < len(lessons):
            self.notes.append(f"A sample of {len(asked)} of the {len(lessons):,} lessons is asked.")
        questions = [LessonQuestion(lesson, text) for lesson in asked for text in held_out(lesson, number)]
        self.questions: Mapping[str, LessonQuestion] = {key(question): question for question in questions}

    def answer(self, model: ResolvedModel, question: LessonQuestion, cancelled: Callable[[], bool]) -> Record:
        """See `Suite.answer`."""
        return {"answer": model.ask(question.messages, GREEDY, cancelled)[0]}

    def judge(self, records: Mapping[str, Record]) -> Result:
        """See `Suite.judge`."""
        answers = []
        for name, record in records.items():
            question, answer = self.questions[name], str(record["answer"])
            answers.append(
                {"question": question.text, "lesson": question.lesson.question, "expected": expected(question.lesson),
                 "answer": answer, "right": is_right(question.lesson, answer)}
            )  # fmt: skip
        values = {name: bool(row["right"]) for name, row in zip(records, answers, strict=True)}
        return Result([Measure("lessons", "", "right", "share", values)], answers, self.notes)


def key(question: LessonQuestion) -> str:
    """64 bits of SHA-256 of what is asked."""
    return hashlib.sha256(json.dumps(question.messages, ensure_ascii=False).encode()).hexdigest()[:16]


def expected(lesson: Lesson) -> str:
    """What a right answer contains."""
    return lesson.must_say or lesson.better


def is_right(lesson: Lesson, answer: str) -> bool:
    """Whether an answer contains what the lesson demands, as complete words."""
    return f" {words(expected(lesson))} " in f" {words(answer)} "


def words(text: str) -> str:
    """A text in small letters, with one space for punctuation and white space. Symbols such as emoji stay."""
    kept = "".join(" " if unicodedata.category(sign).startswith("P") else sign for sign in text.casefold())
    return " ".join(kept.split())
