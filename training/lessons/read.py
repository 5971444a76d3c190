"""Reads lessons: from the page's SQLite file, a JSON Lines file, or a data set on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from inference.errors import LabError
from inference.hub.client import translate_hub_errors
from inference.lessons.lessons import Lesson, Lessons, parse_lessons
from inference.lessons.lessons_hub import FILE


def read_lessons(source: str) -> list[Lesson]:
    """The lessons in a file or a data set on the Hub. Raises LabError if there are none."""
    lessons = find_lessons(source)
    if not lessons:
        raise LabError(f"{source} has no lessons: write better answers on the page (Teach), or name a file of lessons.")
    return lessons


def find_lessons(source: str) -> list[Lesson]:
    """The lessons in a file or a data set, which may be none. Raises LabError if it is not there."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".jsonl":
        return parse_lessons(path.read_text(encoding="utf-8"), path.name)
    if path.is_file():
        return Lessons(path).list()
    if path.suffix in (".sqlite", ".jsonl") or source.count("/") != 1:
        raise LabError(f"There is no lessons file {source}: name a file, or a data set such as your-name/lessons.")
    with translate_hub_errors(source, FILE):
        downloaded = HfApi().hf_hub_download(source, FILE, repo_type="dataset")
    return parse_lessons(Path(downloaded).read_text(encoding="utf-8"), source)
