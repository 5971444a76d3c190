"""Overrides of a recipe's fields on the command line: `lora.r=8 epochs=3`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from inference.errors import LabError
from inference.run_records import ACCUMULATION, with_current_names
from inference.validation import where_not_yaml


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set each `key=value` in `values`. Raises LabError if one is no override, or has an effect only with another."""
    keys = [override.partition("=")[0] for override in overrides]
    if (old := next((key for key in keys if key in ACCUMULATION), None)) and "batch_size" not in keys:
        raise LabError(
            f"“{old}” is chosen from the card's memory now: set batch_size to the conversations of a whole step, or "
            "speed.micro_batch to those that a GPU computes at once."
        )
    for override in overrides:
        apply_override(values, override)
    current = with_current_names(values)
    values.clear()
    values.update(current)


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `key=value` in `values`. A dot in the key reaches into a section; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise LabError(f"“{override}” is not an override: write it as key=value, such as epochs=3.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise LabError(f"“{key}” can't be set: “{section}” holds a single value.")
    values[last] = parse_value(key, text)


def parse_value(key: str, text: str) -> object:
    """The value of an override. Unlike YAML 1.1, it takes 1e-4 as a number. Raises LabError if it is not YAML."""
    try:
        number = float(text)
        return int(text) if text.lstrip("+-").isdigit() else number
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LabError(f"The value of “{key}” is not valid YAML ({where_not_yaml(error)}): fix it.") from error
