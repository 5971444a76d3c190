"""The commands `lessons` and `gate` of `python -m training`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from inference.settings import PROJECT

LessonsSource = Annotated[
    str | None,
    typer.Option("--lessons", help="Lessons: a SQLite file, a JSON Lines file or a data set. Default: VOTES."),
]
GateLessons = Annotated[
    str | None, typer.Option("--lessons", help="Lessons to ask. Default: those that CANDIDATE was trained on.")
]


def lessons(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model to teach: a catalog id, a run or a folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Recipe fields as key=value, such as epochs=5.")] = None,
    source: LessonsSource = None,
    name: Annotated[str | None, typer.Option(help="The new model's name. Default: MODEL-lessons.")] = None,
    prepare_only: Annotated[bool, typer.Option("--prepare", help="Write data and recipe, and train nothing.")] = False,
) -> None:
    """Train a model on lessons, mixed with what it should keep, and compare it with the model that it came from.

    Exits with 1 if the new model does not pass the gate. The same command resumes a stopped run."""
    from training.lessons.prepare import find_parent, prepare
    from training.lessons.read import read_lessons

    parent, found = find_parent(model), read_lessons(source or votes_file())
    path = prepare(parent, found, name)
    if prepare_only:
        print(path)
        return
    from training.evaluation.resolve_model import is_adapter_runnable
    from training.export.export_command import export_and_check
    from training.export.gguf import export_adapter
    from training.finetune.processes.launch import fine_tune_on_all_gpus
    from training.recipe import load_recipe

    recipe = load_recipe(str(path), overrides)
    folder = fine_tune_on_all_gpus(recipe, PROJECT / "runs" / recipe.name).resolve()
    if is_adapter_runnable(folder):
        export_adapter(folder)  # the gate compares what engines answer: `export` makes all files
    else:
        print(export_and_check(folder, ()), file=sys.stderr)
    pass_gate(str(folder), model, str(path.with_name("lessons.jsonl")))


def gate(
    candidate: Annotated[str, typer.Argument(metavar="CANDIDATE", help="The new model: a run or a folder.")],
    against: Annotated[str, typer.Option(metavar="PARENT", help="The model that it came from.")],
    source: GateLessons = None,
) -> None:
    """Compare a model with its parent: on lessons in wordings that were not taught, and on what the parent could do.

    Exits with 0 if it is better on the lessons and not worse on the rest beyond the margin, else with 1."""
    pass_gate(candidate, against, source or own_lessons(candidate))


def pass_gate(candidate: str, parent: str, source: str) -> None:
    """Print the gate's report. Raises typer.Exit with 1 if the candidate does not pass."""
    from training.lessons.gate import run_gate
    from training.lessons.gate_result import report
    from training.lessons.read import read_lessons

    result = run_gate(candidate, parent, read_lessons(source))
    print(report(result))
    if not result.passed:
        raise typer.Exit(1)


def own_lessons(candidate: str) -> str:
    """The file with the lessons that a run was trained on; the page's if it names none."""
    from training.export.model_folder import recorded_recipe
    from training.lessons.prepare import find_parent

    folder = find_parent(candidate).folder
    data = (recorded_recipe(folder).get("data") if folder else None) or {}
    beside = (PROJECT / str(data.get("name", ""))).with_name("lessons.jsonl")
    return str(beside) if beside.is_file() else votes_file()


def votes_file() -> str:
    """The SQLite file of the page's votes and lessons."""
    from inference.settings import Settings

    return str(Path(Settings.from_environment().votes))
