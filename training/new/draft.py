"""The fields of a new recipe that its user gives: name, base, data, and overrides as key=value."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import explain
from training.data.source import local_path
from training.overrides import apply_overrides
from training.recipe import Recipe, locate


def draft(overrides: Sequence[str], name: str, base: str, data: str) -> dict[str, Any]:
    """The fields of a recipe as far as they are given, ready for `Recipe`. Raises LabError if one is not valid."""
    base = normalize_base(base)
    values: dict[str, Any] = {
        "name": name, "title": suggest_title(base, name), "base": base, "data": {"name": normalize_data(data)},
    }  # fmt: skip
    apply_overrides(values, overrides)
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        raise LabError(explain(error, Recipe)) from error
    return values


def given_fields(overrides: Sequence[str]) -> frozenset[str]:
    """The dotted names of the fields that overrides set."""
    return frozenset(override.partition("=")[0] for override in overrides)


def normalize_base(name: str) -> str:
    """A base as a recipe names it. Raises LabError if it names a folder that is not there."""
    if (folder := Path(name).expanduser()).is_dir() and not Path(locate(name)).is_absolute():
        return portable(folder)
    if Path(locate(name)).is_dir():
        return portable(Path(locate(name)))
    local = any((root / name).parent.is_dir() for root in (PROJECT, Path.cwd())) and name.count("/") == 1
    if local or name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or not name.strip():
        raise LabError(f"There is no folder {name or '“”'} for the base: check the path, or name a Hub repository.")
    return name


def normalize_data(name: str) -> str:
    """A data set as a recipe names it. Raises LabError if it names a file that is not there."""
    if name == "emoji":
        return name
    path = local_path(name)
    return portable(path) if path else name


def portable(path: Path) -> str:
    """How a recipe names a file or folder: relative to the project if it is in it, else absolute."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(PROJECT).as_posix() if absolute.is_relative_to(PROJECT) else str(absolute)


def suggest_title(base: str, name: str) -> str:
    """The published model's name: the base's, which some licences require to come first, and the run's."""
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(base).name.removesuffix("-Instruct")).strip("-._")
    return f"{model}-{name}" if model else name
