"""Checks a recipe's `peft` or `trl` mapping against the settings of the library that it is for."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from inference.errors import LabError
from inference.validation import nearest, reason_of


def check_options(
    section: str, options: Mapping[str, Any], settings: type, reserved: Mapping[str, str], choices: Mapping[str, Any]
) -> None:
    """Check the mapping `section` of a recipe against the dataclass `settings`.

    `reserved` has the settings that the lab makes itself, with what to use instead ("" if nothing). `choices` has the
    allowed values of settings whose type doesn't list them. Raises LabError for the first wrong key or value.
    """
    types = get_type_hints(settings)
    known = {field.name for field in fields(settings) if field.init and field.name not in reserved}
    for name, value in options.items():
        key = f"{section}.{name}"
        if name in reserved:
            instead = f": set {reserved[name]} instead" if reserved[name] else " itself: remove it"
            raise LabError(f"“{key}” can't be set, because the lab decides it{instead}.")
        if name not in known:
            raise LabError(f"“{key}” is not an option of {settings.__name__}{nearest(name, known)}: remove or fix it.")
        if reason := why_wrong(value, types[name], choices.get(name, ())):
            raise LabError(f"“{key}” can't be {value!r}: {reason}.")


def why_wrong(value: Any, hint: Any, choices: Any) -> str:
    """Why a value doesn't fit a setting's type or its choices; "" if it fits."""
    parts = (hint, *get_args(hint))
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, enum.Enum)]
    choices = [member.value for part in enums for member in part] or list(choices)
    if choices and isinstance(value, str):
        close = nearest(value, choices)
        return "" if value in choices else f"choose one of {', '.join(choices)}{close}"
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(found["msg"][0].lower() + found["msg"][1:] for found in error.errors())
        return " or ".join(reasons)
    except PydanticSchemaGenerationError as error:  # a class of the library: YAML can't hold one
        return f"a recipe can't hold such a value ({reason_of(error)})"
    return ""
