"""Writes a recipe as YAML: above each field its description, behind its value the reason for it.

The descriptions are those of the model's fields, so that no text is written twice.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from inference.errors import LabError
from training.recipe import Recipe

WIDTH = 120  # columns


def write_recipe(path: Path, recipe: Recipe, written: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    """Write the fields that `written` holds (sections are mappings) with comments to a new file.

    Raises LabError if the file exists or can't be written.
    """
    head = (
        "# Written by `python -m training new`. docs/train.md has all fields. Look at the data with\n"
        f"# `python -m training data {path.name}`, then train with `python -m training run {path.name}`.\n\n"
    )
    text = head + "\n".join(lines(type(recipe), written, reasons)) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise file_exists(path) from error
    except OSError as error:
        raise LabError(f"{path} can't be written ({error.strerror}): choose another --out.") from error


def file_exists(path: Path) -> LabError:
    """The error for a recipe that is there already."""
    return LabError(f"{path} exists already: choose another name or --out, or delete it.")


def lines(
    model: type[BaseModel], values: Mapping[str, Any], reasons: Mapping[str, str], prefix: str = ""
) -> Iterator[str]:
    """The lines of a section, in the order of the model's fields."""
    indent = "  " * prefix.count(".")
    for name, field in model.model_fields.items():
        if name not in values:
            continue
        for line in textwrap.wrap(field.description or "", WIDTH - len(indent) - 2):
            yield f"{indent}# {line}"
        section, value = field.annotation, values[name]
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield f"{indent}{name}:"
            yield from lines(section, value, reasons, f"{prefix}{name}.")
            continue
        reason = reasons.get(f"{prefix}{name}", "")
        yield f"{indent}{name}: {as_yaml(value)}{f'  # {reason}' if reason else ''}"


def as_yaml(value: object) -> str:
    """A value on one line of YAML."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.removesuffix("...\n").strip()
