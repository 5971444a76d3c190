"""Reads lessons: from the page's SQLite file, a JSON Lines file, or a data set on the Hub."""

from __future__ import annotations

from inference.errors import LabError
from inference.lessons.lessons import Lesson, Lessons, parse_lessons
from inference.lessons.lessons_hub import FILE
from training.data.collected import read_collected


def read_lessons(source: str) -> list[Lesson]:
    """The lessons in a file or a data set on the Hub. Raises LabError if there are none."""
    lessons = find_lessons(source)
    if not lessons:
        raise LabError(f"{source} has no lessons: write better answers on the page (Teach), or name a file of lessons.")
    return lessons


def find_lessons(source: str) -> list[Lesson]:
    """The lessons in a file or a data set, which may be none. Raises LabError if it is not there."""
    return read_collected(source, "lessons", FILE, parse_lessons, lambda path: Lessons(path).list())
