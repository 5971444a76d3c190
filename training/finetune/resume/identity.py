"""What makes a run the same run, so that it resumes or counts as finished: its recipe and its training split.

The recorded recipe may come from an earlier version: a field that it lacks had the effect of that field's default.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from inspect import isclass
from typing import Any, get_args

from pydantic import BaseModel

from inference.run_records import with_current_names
from training.publish.redact import published_recipe
from training.recipe import Recipe

Fields = dict[str, Any]
# Parts of a recipe that don't change what a run learns: when it saves, how fast it is, and what it logs.
NEUTRAL = ("checkpoints", "speed", "report_to", "validation.samples")


@dataclass(frozen=True)
class Identity:
    """What makes a run the same run: the recipe's fields, and the SHA-256 of its training split."""

    recipe: Fields
    data: str | None

    @property
    def short(self) -> str:
        """Eight hexadecimal digits that tell this run from others of the same name."""
        learnt = dict(sorted(self.decisive_fields().items()))
        return hashlib.sha256(json.dumps([learnt, self.data]).encode()).hexdigest()[:8]

    def decisive_fields(self) -> Fields:
        """The fields that change the result and differ from their defaults, under dotted names and current names."""
        fields = flatten(with_current_names(self.recipe))
        return {name: value for name, value in fields.items() if changes_result(name) and value != default(name)}

    def difference(self, recorded: Fields) -> str:
        """How a recorded identity differs, such as "lora.r is 8 there and 16 here"; "" if it is the same run."""
        other = Identity(recorded.get("recipe") or {}, recorded.get("data"))
        if other.data != self.data:
            return "its training data differ"
        here, there = self.decisive_fields(), other.decisive_fields()
        for name in sorted(here.keys() | there.keys()):
            mine, theirs = here.get(name, default(name)), there.get(name, default(name))
            if mine != theirs and not (name == "method" and mine == "auto" and theirs in ("qlora", "lora")):
                return f"{name} is {theirs} there and {mine} here"
        return ""


def published_difference(identity: Identity, recorded: Fields) -> str:
    """`Identity.difference` from a recorded identity that left its machine: there, a name stands for a path."""
    there = recorded | {"recipe": published_recipe(recorded.get("recipe") or {})}
    return Identity(published_recipe(identity.recipe), identity.data).difference(there)


def recorded_identity(run_record: Fields) -> Fields:
    """The part of a finished run's record that `Identity.difference` compares."""
    return {"recipe": run_record.get("recipe"), "data": run_record.get("data", {}).get("sha256")}


def changes_result(name: str) -> bool:
    """Whether a recipe's field, by its dotted name, changes what a run learns."""
    return not any(name == neutral or name.startswith(f"{neutral}.") for neutral in NEUTRAL)


def flatten(fields: Fields, prefix: str = "") -> Fields:
    """Nested fields under dotted names; the sections of a list under their numbers, such as `data.mixture.0.name`."""
    result: Fields = {}
    for name, value in fields.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        result |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def default(name: str) -> Any:
    """The default of a recipe's field by its dotted name; None if it is required or unknown."""
    return defaults().get(re.sub(r"\.\d+\.", ".", name))


@cache
def defaults() -> Fields:
    """The defaults of all fields of a recipe, under dotted names."""
    return defaults_of(Recipe)


def defaults_of(section: type[BaseModel], prefix: str = "") -> Fields:
    """The defaults of a section's fields and of the sections in it. A required field has None."""
    result: Fields = {}
    for name, field in section.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        inner = next((part for part in parts if isclass(part) and issubclass(part, BaseModel)), None)
        if inner:
            result |= defaults_of(inner, f"{prefix}{name}.")
        if inner is None or isinstance(field.default, list):
            result[prefix + name] = None if field.is_required() else field.get_default()
    return result
