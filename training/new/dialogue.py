"""`python -m training new`: asks for what the command line leaves out, looks at base and data, chooses, and writes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import typer

from inference.errors import LabError
from training.finetune.planning.cards import CARDS, HERE, find_card
from training.new.choices import GOALS, Choices, choose, find_goal
from training.new.draft import draft, given_fields, normalize_data
from training.new.inspection import BaseFacts, DataFacts, inspect_base, inspect_data
from training.new.outcome import describe_base, describe_data, describe_run
from training.new.recipe_file import file_exists, write_recipe
from training.recipe import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Options:
    """What the command line gives. What is None is asked for; with `yes` or without a terminal it has a default."""

    name: str | None = None
    base: str | None = None
    data: str | None = None
    goal: str | None = None
    card: str | None = None
    out: Path | None = None
    overrides: Sequence[str] = ()
    yes: bool = False

    @property
    def interactive(self) -> bool:
        """Whether there is somebody to ask."""
        return not self.yes and sys.stdin.isatty()


def new_recipe(options: Options) -> Path:
    """Write a recipe and return its path. Raises LabError if an answer is not valid or the file exists."""
    check_early(options)
    base = answer(options, "--base", options.base, "Base (a Hub repository or a folder)", find_base(options))
    typer.echo(describe_base(base))
    data = answer(
        options, "--data", options.data, "Data (a Hub data set, a file or a folder)", find_data(options, base)
    )
    typer.echo(describe_data(data))
    default = "preferences" if data.preferences else "chat"
    for name, goal in GOALS.items() if options.goal is None and options.interactive else ():
        typer.echo(f"  {name}: {goal.description}")
    goal_name = answer(options, "--goal", options.goal, "Goal", find_goal, default)
    card = answer(options, "--card", options.card, f"Card ({', '.join([*CARDS, 'cpu', HERE])})", find_card, HERE)
    name = answer(options, "NAME", options.name, "Name of the run", check_name, suggest_name(base, data))
    out = options.out or Path(f"{name}.yaml")
    if out.exists():
        raise file_exists(out)
    choices = Choices(draft(options.overrides, name, base.name, data.name), given=given_fields(options.overrides))
    estimated = choose(choices, base, data, goal_name, card)
    recipe = choices.recipe()
    typer.echo(describe_run(data, recipe, estimated))
    if options.interactive and not typer.confirm(f"Write {out}?", default=True):
        raise LabError("Nothing was written.")
    write_recipe(out, recipe, choices.values, choices.reasons)
    typer.echo(f"Next:  python -m training data {out}\n       python -m training run {out}")
    return out


def check_early(options: Options) -> None:
    """Check what can be checked before anything is downloaded. Raises LabError."""
    if options.name is not None:
        check_name(options.name)
    out = options.out or (Path(f"{options.name}.yaml") if options.name else None)
    if out and out.exists():
        raise file_exists(out)
    if out and out.suffix not in (".yaml", ".yml"):
        raise LabError(f"{out} is not the name of a recipe: it must end with .yaml.")
    for given, check in ((options.goal, find_goal), (options.data, normalize_data)):
        if given is not None:
            check(given)
    if options.card is not None:
        find_card(options.card)
    for option, given in (("--base", options.base), ("--data", options.data)):
        if given is None and not options.interactive:
            raise LabError(f"{option} is missing: `python -m training new NAME --base BASE --data DATA`.")
    draft(options.overrides, options.name or "unnamed", options.base or "unnamed", options.data or "emoji")


def find_base(options: Options) -> Callable[[str], BaseFacts]:
    """A function that looks at a base by name."""
    return lambda name: inspect_base(Recipe.model_validate(draft(options.overrides, "unnamed", name, "emoji")))


def find_data(options: Options, base: BaseFacts) -> Callable[[str], DataFacts]:
    """A function that reads a data set by name."""
    return lambda name: inspect_data(Recipe.model_validate(draft(options.overrides, "unnamed", base.name, name)), base)


def answer(
    options: Options, option: str, given: str | None, question: str, check: Callable[[str], Found],
    default: str | None = None,
) -> Found:  # fmt: skip
    """The checked value of an option, the answer to its question, or its default. Asks again after a wrong answer."""
    if given is not None:
        return check(given)
    if not options.interactive:
        if default is None:
            raise LabError(f"{option} is missing: give it, or answer its question in a terminal.")
        return check(default)
    while True:
        try:
            return check(typer.prompt(question, default=default, type=str))
        except LabError as error:
            typer.echo(str(error), err=True)


def check_name(name: str) -> str:
    """The name of a run. Raises LabError if it can't be one."""
    if not NAME.fullmatch(name):
        raise LabError(f"“{name}” can't be the name of a run: use letters, digits, dots, dashes and underscores.")
    return name


def suggest_name(base: BaseFacts, data: DataFacts) -> str:
    """A name from the names of data and base, such as people-nano."""
    parts = [Path(name).stem if Path(name).suffix else Path(name).name for name in (data.name, base.name)]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-._").lower() or "my-run"
