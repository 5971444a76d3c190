"""YAML files that people write, and errors in them as one sentence: the key, the reason, the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args

import yaml
from pydantic import BaseModel, ValidationError

REASON = 200  # characters of a library's error in a sentence


def shorten(text: str, length: int = 60) -> str:
    """A stranger's text, cut to `length` characters, with "?" for those that cannot be printed."""
    printable = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def reason_of(error: BaseException) -> str:
    """The first line of a library's error for a sentence, at most `REASON` characters; its type if it says nothing."""
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."), REASON)


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion: " (did you mean “X”?)", or "" if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean “{close[0]}”?)" if close else ""


def where_not_yaml(error: yaml.YAMLError) -> str:
    """The problem of a YAML file, with its line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else problem


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing to fix in data for `model`, as a sentence."""
    # A misspelt key is reported as missing, too; the misspelling is the cause.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = fields_at(model, first["loc"][:-1])
        return f"“{where}” is not a field{nearest(str(first['loc'][-1]), known)}; the fields are {', '.join(known)}."
    if first["type"] == "missing":
        return f"“{where}” is missing: add it."
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"“{where}” can't be {first['input']!r}: {reason}."


def fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The field names of `model`, or of the part of it that `path` leads to (numbers are list indices)."""
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        parts = (a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel))
        model = next(parts, model)
    return list(model.model_fields)
