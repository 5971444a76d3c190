"""What leaves this machine of a run: no text of private data, and no path or user name.

Works on the values of JSON files and on texts. A path becomes the name of its last part.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import constants

from inference.hub.entries import is_repository
from inference.settings import PROJECT
from training.run_record import Fields, PublicFields, TextFields

NOT_PUBLISHED = "not published"
SHIPPED = "adapters/"  # models in this folder of the project have the same name everywhere
LOCAL_FILE, LOCAL_FOLDER = "a local file", "a local folder"
HOMES = (r"/home/[^/\s]+", r"/Users/[^/\s]+", r"/root", r"[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s]+")
PATHS_OF_DATA = ("name",)
TEXTS_OF_DATA = ("system",)


@cache
def machine_path() -> re.Pattern[str]:
    """A path that begins at a folder of this machine (home, project, working directory, temporary files, caches) or at
    anyone's home. Its group is the part below that folder. Capitals don't matter, nor does a missing first slash:
    llama.cpp's converter makes titles of paths."""
    found = {Path.home(), PROJECT, Path.cwd(), Path(tempfile.gettempdir()), Path(constants.HF_HOME)}
    roots = {text for path in found for text in (str(path), str(path.resolve())) if len(text) > 1}
    known = []
    for root in sorted(roots, key=len, reverse=True):
        escaped = re.escape(root)
        # A single name such as “tmp” is a path only after a slash.
        known.append(rf"/?{escaped[1:]}" if root.startswith("/") and root.count("/") > 1 else escaped)
    return re.compile(rf"(?<!\w)(?:{'|'.join([*known, *HOMES])})(?![\w-])((?:[\\/]+[^\s\\/\"'`<>|]*)*)", re.IGNORECASE)


def without_machine_paths(text: str) -> str:
    """A text with the last part of each path instead of the path."""
    return machine_path().sub(lambda found: last_part(found[1]) or LOCAL_FOLDER, text)


def last_part(path: str) -> str:
    """The last name in a path of any system; "" if it has none."""
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1]


def is_absolute(text: str) -> bool:
    """Whether a complete text is an absolute path of at least two parts."""
    if "\n" in text or text.startswith(("http://", "https://")):
        return False
    return (PurePosixPath(text).is_absolute() and text.count("/") > 1) or bool(PureWindowsPath(text).drive)


def published_name(name: str) -> str:
    """The name under which a base, a data set or a template is published: that of a file or folder for a path."""
    shorter = without_machine_paths(name)
    if shorter != name:
        return shorter
    if name.startswith(SHIPPED) and ".." not in name:
        return name
    is_local = (PROJECT / name).exists() or Path(name).expanduser().exists() or not is_repository(name)
    return (last_part(name) or LOCAL_FILE) if is_local else name


def without_paths(value: Any, names: Mapping[str, str] | None = None) -> Any:
    """A value of JSON without absolute paths. `names` has what replaces other texts, such as relative paths."""
    if isinstance(value, dict):
        return {without_paths(key, names): without_paths(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [without_paths(each, names) for each in value]
    if not isinstance(value, str):
        return value
    for name, other in (names or {}).items():
        value = value.replace(name, other)
    shorter = without_machine_paths(value)
    return last_part(value) if shorter == value and is_absolute(value) else shorter


def recipe_names(recipe: Fields) -> dict[str, str]:
    """The names in a recipe that are published under another name, the longest first."""
    data = recipe.get("data") or {}
    sources = [data, *(data.get("mixture") or [])]
    named = [recipe.get("base"), recipe.get("chat_template"), *(source.get("name") for source in sources)]
    names = {name: published_name(name) for name in named if isinstance(name, str) and name}
    return {name: names[name] for name in sorted(names, key=len, reverse=True) if names[name] != name}


def published_recipe(recipe: Fields, samples: bool = False) -> Fields:
    """A recipe as it is published: names for paths and, without `samples`, no system prompts."""

    def source(fields: Fields) -> Fields:
        hidden = {} if samples else {name: NOT_PUBLISHED for name in TEXTS_OF_DATA if fields.get(name)}
        return fields | hidden | {name: published_name(fields[name]) for name in PATHS_OF_DATA if fields.get(name)}

    result = dict(recipe)
    for field in ("base", "start", "chat_template"):
        if isinstance(result.get(field), str):
            result[field] = published_name(result[field])
    if isinstance(result.get("data"), dict):
        result["data"] = source(result["data"])
        if result["data"].get("mixture"):
            result["data"]["mixture"] = [source(each) for each in result["data"]["mixture"]]
    return without_paths(result)


def published_record(run_record: Fields, samples: bool) -> Fields:
    """A run record as it is published: the public fields, those with text if `samples`, and no others."""
    fields = PublicFields.__annotations__.keys() | (TextFields.__annotations__.keys() if samples else set())
    recipe = run_record.get("recipe")
    names = recipe_names(recipe) if isinstance(recipe, dict) else {}
    result = {name: value for name, value in run_record.items() if name in fields and name != "recipe"}
    result = without_paths(result, names)
    return ({"recipe": published_recipe(recipe, samples)} if isinstance(recipe, dict) else {}) | result


def left_out_fields(run_record: Fields, samples: bool) -> list[str]:
    """The names of the fields that are not published."""
    return sorted(run_record.keys() - published_record(run_record, samples).keys())
