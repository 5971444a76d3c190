"""Lessons: better answers that people write where a model answered badly. In the SQLite file of the votes.

`python -m training lessons` trains on them. `inference.lessons.lessons_hub` copies them to the Hub.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from inference.arena.database import ArenaDatabase, now
from inference.errors import LabError
from inference.validation import shorten

MAX_LESSONS = 10_000
MAX_TEXT = 8_000  # characters of a question or an answer
MAX_PHRASINGS = 10
MAX_CONTEXT = 40_000  # characters of the turns before the question
Turn = dict[str, str]  # a chat message: {"role", "content"}; pydantic takes no TypedDict on Python 3.11
ROLES = ("system", "user", "assistant")


class Lesson(BaseModel):
    """What a model should have answered.

    Attributes:
        id: cannot be guessed.
        question: the question.
        better: the answer to learn.
        bad: the model's answer; "" if it is not known.
        model: the id of the model that gave it.
        context: the turns before the question, such as a system prompt.
        must_say: words that a right answer contains; "" asks for the better answer itself.
        phrasings: other wordings of the question. They are never taught: the gate asks them.
        time: when it was written or last edited, ISO 8601, UTC.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default_factory=lambda: secrets.token_urlsafe(9), max_length=64)
    question: str
    better: str
    bad: str = ""
    model: str = Field("", max_length=200)
    context: tuple[Turn, ...] = ()
    must_say: str = ""
    phrasings: tuple[str, ...] = ()
    time: str = Field(default_factory=now, max_length=40)

    @field_validator("question", "better", "bad", "must_say")
    @classmethod
    def check_text(cls, text: str, info: ValidationInfo) -> str:
        """Strip a text. Raises ValueError if it is too long, or empty where it must not be."""
        text = text.strip()
        name = {"must_say": "list of words"}.get(str(info.field_name), f"{info.field_name} answer")
        name = "question" if info.field_name == "question" else name
        if not text and info.field_name in ("question", "better"):
            raise ValueError(f"A lesson needs a {name}: write one.")
        if len(text) > MAX_TEXT:
            raise ValueError(f"The {name} has {len(text):,} characters, and {MAX_TEXT:,} are allowed: shorten it.")
        return text

    @field_validator("phrasings")
    @classmethod
    def check_phrasings(cls, phrasings: tuple[str, ...]) -> tuple[str, ...]:
        """Strip the phrasings and remove empty ones. Raises ValueError if there are too many or too long ones."""
        kept = tuple(dict.fromkeys(text.strip() for text in phrasings if text.strip()))
        if len(kept) > MAX_PHRASINGS or any(len(text) > MAX_TEXT for text in kept):
            raise ValueError(
                f"A lesson has at most {MAX_PHRASINGS} other phrasings of {MAX_TEXT:,} characters: shorten them."
            )
        return kept

    @field_validator("context")
    @classmethod
    def check_context(cls, context: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """Raise ValueError if the turns before the question are too long or have other roles."""
        if any(turn.keys() != {"role", "content"} for turn in context):
            raise ValueError("A turn before the question is not {role, content}: start a new conversation.")
        size = sum(len(turn["content"]) for turn in context)
        if size > MAX_CONTEXT or any(turn["role"] not in ROLES for turn in context):
            raise ValueError(
                f"The turns before the question have {size:,} characters, and {MAX_CONTEXT:,} are allowed: start a new "
                "conversation."
            )
        return context


def read_lesson(values: dict[str, Any], where: str = "") -> Lesson:
    """A lesson from JSON's types. Raises LabError that says what is wrong; `where` is its place in a file."""
    try:
        return Lesson.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        problem = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] != "value_error":
            field = ".".join(map(str, first["loc"])) or "its text"
            problem = f"The lesson's {shorten(field)} is not valid ({problem}): fix it."
        raise LabError(f"{where}: {problem}" if where else problem) from error


class Lessons:
    """The lessons in the file `path`, which is created when it is first needed.

    Every method raises LabError if the file is not usable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = ArenaDatabase(path)

    def add(
        self, question: str, bad: str, better: str, model: str = "", context: Sequence[Mapping[str, Any]] = (),
        must_say: str = "", phrasings: Sequence[str] = (),
    ) -> str:  # fmt: skip
        """Store a lesson and return its id. Raises LabError if a text is missing or too long, or the file is full."""
        lesson = read_lesson(
            {"question": question, "bad": bad, "better": better, "model": model, "context": tuple(map(dict, context)),
             "must_say": must_say, "phrasings": tuple(phrasings)}
        )  # fmt: skip
        self.merge([lesson])
        return lesson.id

    def list(self) -> list[Lesson]:
        """Return every lesson, oldest first."""
        with self._database.connection() as database:
            rows = database.execute("SELECT lesson FROM lessons ORDER BY time, id").fetchall()
        return [read_lesson(json.loads(row[0])) for row in rows]

    def edit(self, lesson_id: str, **changes: Any) -> Lesson:
        """Change fields of a lesson and return it. Raises LabError if there is none, or a text is missing or too
        long."""
        with self._database.connection() as database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute("SELECT lesson FROM lessons WHERE id = ?", (lesson_id,)).fetchone()
            if row is None:
                raise LabError(f"There is no lesson “{shorten(lesson_id)}”: it was deleted.")
            lesson = read_lesson(json.loads(row[0]) | changes | {"id": lesson_id, "time": now()})
            database.execute(
                "UPDATE lessons SET time = ?, lesson = ? WHERE id = ?",
                (lesson.time, lesson.model_dump_json(), lesson_id),
            )
            database.execute("COMMIT")
        return lesson

    def delete(self, lesson_id: str) -> None:
        """Delete a lesson, if it is there."""
        with self._database.connection() as database:
            database.execute("DELETE FROM lessons WHERE id = ?", (lesson_id,))

    def merge(self, lessons: Iterable[Lesson]) -> None:
        """Add lessons; of two with one id, the newer one stays. Raises LabError if the file would have more than
        `MAX_LESSONS`; then none is added."""
        with self._database.connection() as database:
            database.execute("BEGIN IMMEDIATE")
            for lesson in lessons:
                database.execute(INSERT, (lesson.id, lesson.time, lesson.model_dump_json()))
            count = database.execute("SELECT count(*) FROM lessons").fetchone()[0]
            if count > MAX_LESSONS:
                raise LabError(
                    f"There are {MAX_LESSONS:,} lessons, the most that fit: train on them, then delete some."
                )
            database.execute("COMMIT")


INSERT = (
    "INSERT INTO lessons (id, time, lesson) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE "
    "SET time = excluded.time, lesson = excluded.lesson WHERE excluded.time > lessons.time"
)


def to_jsonl(lessons: Iterable[Lesson]) -> str:
    """Lessons as JSON Lines, one a line."""
    return "".join(lesson.model_dump_json() + "\n" for lesson in lessons)


def parse_lessons(text: str, name: str) -> list[Lesson]:
    """The lessons of JSON Lines; `name` is the file's. Raises LabError for a line that is not a lesson."""
    lessons = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise LabError(f"Line {number} of {name} is not JSON ({error}): fix that line.") from error
        if not isinstance(values, dict):
            raise LabError(f'Line {number} of {name} is not a lesson: write {{"question": …, "better": …}}.')
        lessons.append(read_lesson(values, f"Line {number} of {name}"))
        if len(lessons) > MAX_LESSONS:
            raise LabError(f"{name} has more than {MAX_LESSONS:,} lessons: divide it.")
    return lessons
