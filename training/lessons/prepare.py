"""Writes a folder with the lessons, the rows to train on and a recipe: what `python -m training run` needs.

Each lesson gives rows in several wordings. Rows that keep what the model knows are mixed in, seven for each of the
lessons' rows. An adapter is continued; a model with all weights gets a new adapter.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from inference.catalog import Catalog
from inference.errors import LabError
from inference.lessons.lessons import Lesson, to_jsonl
from inference.settings import PROJECT, Settings
from inference.validation import shorten
from training.evaluation.resolve_model import find_run
from training.export.model_folder import base_of, is_adapter
from training.lessons.keep import recipes_of, replay_rows
from training.lessons.length import leave_out_long
from training.lessons.phrasings import taught
from training.new.choices import learning_rate
from training.new.inspection import BaseFacts, inspect_base
from training.recipe import Recipe

# One pass over many wordings and many rows to keep. Three passes over a third of them learn and forget as much.
WORDINGS = 60  # of one lesson, if there are few
LEAST_WORDINGS = 10
LESSON_ROWS = 1200  # about as many rows of lessons as there are at least
# Of what nano-emoji knew, 12 lessons cost 6.7 % with 1.5 rows to keep for each of theirs, and 2.5 % with 7.
REPLAY = 7
LEAST_REPLAY, MOST_REPLAY = 720, 12_000
BATCH, STEPS = 16, 45  # about as many steps as there are at least, by passing over few rows several times
RATE = 1 / 6  # of the learning rate for a new subject, if an adapter is continued
SAVED = 0.1  # of the steps between two checkpoints: a run of a minute, too, resumes
DEFAULT_LORA = {"r": 16, "alpha": 16}


@dataclass(frozen=True)
class Parent:
    """The model to teach. `folder` is None for a base on the Hub, whose repository is `base`. `start` is the folder of
    its adapter, or None; `name` is its catalog id or its folder."""

    name: str
    folder: Path | None
    base: str
    start: str | None


def find_parent(name: str) -> Parent:
    """The model with that catalog id, run name or folder. Raises LabError if it is unknown or can't be trained."""
    settings = Settings.from_environment()
    catalog = Catalog.read(settings.catalog, settings.namespace)
    entry = next((entry for entry in catalog.entries if entry.id == name), None)
    folder = find_run(name, catalog) or (entry.folder if entry else None)
    if folder and is_adapter(folder):
        base = base_of(folder)
        assert base is not None  # every adapter has one
        return Parent(name, folder, base.name, relative(folder))
    if folder and (folder / "config.json").is_file():
        return Parent(name, folder, relative(folder), None)
    if entry and entry.weights:
        return Parent(name, None, entry.weights, None)
    if entry or folder:
        raise LabError(f"{name} has no weights that can be trained here: choose a model with safetensors on this disk.")
    raise LabError(f"There is no model “{shorten(name)}”: name a catalog id, a run, or a folder.")


def relative(folder: Path) -> str:
    """A folder as recipes name it: relative to the project if it is in there."""
    folder = folder.resolve()
    return str(folder.relative_to(PROJECT)) if folder.is_relative_to(PROJECT) else str(folder)


def prepare(parent: Parent, lessons: list[Lesson], name: str | None = None) -> Path:
    """Write `lessons.jsonl`, `data.jsonl` and `NAME.yaml` into runs/lessons/NAME; returns the recipe's path.

    The same lessons of the same model give the same folder, so that a stopped run resumes. Without a name, other
    lessons get a new one: MODEL-lessons, MODEL-lessons-2, and so on.
    """
    shape = adapter_shape(parent)
    base = look_at_base(parent, shape)
    room = min(shape["max_length"], base.context or shape["max_length"])
    lessons = leave_out_long(lessons, base.tokenizer, room)
    rows = lesson_rows(lessons)
    replay = min(max(REPLAY * len(rows), LEAST_REPLAY), MOST_REPLAY)
    rows += replay_rows(parent.name, parent.folder, replay)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    stem = f"{(parent.folder.name if parent.folder else parent.name).replace('/', '-')}-lessons"
    folder = folder_for(text, name or stem, fixed=name is not None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lessons.jsonl").write_text(to_jsonl(lessons), encoding="utf-8")
        (folder / "data.jsonl").write_text(text, encoding="utf-8")
        path = folder / f"{folder.name}.yaml"
        fields = recipe_fields(parent, folder, len(rows), shape, base)
        path.write_text(recipe_text(fields, len(lessons)), encoding="utf-8")
    except OSError as error:
        raise LabError(f"{folder} can't be written ({error.strerror}): make room on the disk.") from error
    return path


def folder_for(text: str, name: str, fixed: bool) -> Path:
    """The folder of these rows: one that has them already, or the first free one."""
    number = 1
    while True:
        folder = PROJECT / "runs" / "lessons" / (name if number == 1 else f"{name}-{number}")
        file = folder / "data.jsonl"
        used = file.is_file() or (PROJECT / "runs" / folder.name / "run.json").is_file()
        if fixed or not used or (file.is_file() and file.read_text(encoding="utf-8") == text):
            return folder
        number += 1


def lesson_rows(lessons: list[Lesson]) -> list[dict[str, Any]]:
    """Each lesson in several wordings, as conversations. Turns before the question are not learnt."""
    wordings = max(LEAST_WORDINGS, min(WORDINGS, LESSON_ROWS // len(lessons)))
    rows = []
    for lesson in lessons:
        before = [{**turn, "train": False} if turn["role"] == "assistant" else dict(turn) for turn in lesson.context]
        for question in taught(lesson, wordings):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": lesson.better}]
            rows.append({"messages": [*before, *turns]})
    return rows


def adapter_shape(parent: Parent) -> dict[str, Any]:
    """The recipe's fields of the adapter and its texts: those of the parent's recipe, if it has one."""
    recipes = recipes_of(parent.folder) if parent.folder else []
    if not recipes:
        return {"lora": dict(DEFAULT_LORA), "max_length": Recipe.model_fields["max_length"].default}
    own = recipes[0]
    shape: dict[str, Any] = {"lora": own.lora.model_dump(), "max_length": own.max_length}
    shape |= {"peft": own.peft} if own.peft else {}
    return shape | ({"chat_template": own.chat_template} if own.chat_template else {})


def look_at_base(parent: Parent, shape: dict[str, Any]) -> BaseFacts:
    """The base with the parent's chat template. Raises LabError if it is not available."""
    fields = {"name": "lessons", "title": "Lessons", "base": parent.base, "data": {"name": "lessons"}}
    return inspect_base(Recipe.model_validate(fields | shape))


def recipe_fields(parent: Parent, folder: Path, rows: int, shape: dict[str, Any], base: BaseFacts) -> dict[str, Any]:
    """The recipe: the parent's shape, one pass or several, and a learning rate that an adapter of the parent survives.
    A new adapter starts at zero and takes the rate for a new subject."""
    template = {"chat_template": base.chat_template} if base.chat_template else {}
    return {
        "name": folder.name, "title": folder.name.title(), "base": parent.base,
        **({"start": parent.start} if parent.start else {}),
        "data": {"name": relative(folder / "data.jsonl"), "evaluation": 0},
        "method": "auto",  # even if the parent was trained in 4 bits: nano-emoji kept more with a base in 16
        **shape, "epochs": float(math.ceil(STEPS * BATCH / rows)), "batch_size": BATCH, "schedule": "linear",
        "warmup_steps": 5, "checkpoints": {"steps": SAVED}, "seed": 0, "report_to": ["tensorboard"],
        **template, "learning_rate": learning_rate(base.parameters, RATE if parent.start else 1),
    }  # fmt: skip


def recipe_text(fields: dict[str, Any], lessons: int) -> str:
    """The recipe's file. Raises LabError if a field is not valid."""
    Recipe.model_validate(fields)
    head = (
        f"# Teaches {lessons:,} {'lesson' if lessons == 1 else 'lessons'}. Written by `python -m training lessons`; "
        "docs/train.md has all fields.\n"
    )
    return head + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
