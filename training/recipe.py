"""The recipe: everything that decides what a fine-tuning run makes, validated before anything is loaded.

A recipe is a YAML file in `training/recipes/` (or anywhere), named on the command line by its name or its path; each
field can be overridden as `key=value` (`lora.r=8 epochs=3`). Unknown keys and wrong types are refused in one sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from inference.errors import LabError
from inference.run_records import RENAMED, with_current_names
from inference.settings import PROJECT
from inference.validation import explain, load_yaml, nearest, where_not_yaml

RECIPES = Path(__file__).with_name("recipes")


class Part(BaseModel):
    """A part of a recipe: no key that isn't known, no value that isn't of its type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Part):
    """Which data set, and how much of it: "emoji" (made here), a Hub data set, a JSON Lines or Parquet file or folder.

    `evaluation` conversations are kept apart for measuring. What rows may look like: `training/data/formats.py`.
    """

    name: str
    examples: Annotated[int, Field(gt=0)] | None = None
    evaluation: Annotated[int, Field(ge=0)] = 200
    seed: int = 0


class Lora(Part):
    """The adapter's shape (Hu et al. 2021): an update of rank `r`, scaled by alpha / r, on all linear layers."""

    r: Annotated[int, Field(gt=0)] = 16
    alpha: Annotated[int, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Checkpoints(Part):
    """When a run is saved so that it can go on elsewhere: every so many steps or minutes, whichever comes first."""

    steps: Annotated[int, Field(gt=0)] = 200
    minutes: Annotated[float, Field(gt=0)] = 10.0
    keep: Annotated[int, Field(gt=0)] = 2


def as_written(value: object) -> object:
    """YAML reads a plain on or off as true or false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


Choice = Annotated[Literal["auto", "on", "off"], BeforeValidator(as_written)]


def steps_or_share(value: object) -> object:
    """Refuses what is neither a number of steps nor, between 0 and 1, a share of all steps."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if whole or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f"“warmup_steps” can't be {value!r}: it is a number of steps, or a share of them such as 0.1.")


class Speed(Part):
    """Options that change speed and memory, never what is learnt. "auto" decides by the GPU's memory: see
    `training/finetune/memory_plan.py`."""

    gradient_checkpointing: Choice = "auto"
    fused_kernels: Choice = "auto"
    compile: Choice = "auto"


class Recipe(Part):
    """One fine-tuning run. `base` is a Hub repository or a folder, as seen from the project; `title` what the published
    model is called."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    base: str
    data: Data
    method: Literal["qlora", "lora", "full"] = "qlora"
    lora: Lora = Lora()
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Annotated[int, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(gt=0)] = 2
    gradient_accumulation: Annotated[int, Field(gt=0)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Annotated[int | float, BeforeValidator(steps_or_share)] = 5
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_length: Annotated[int, Field(gt=0)] = 2048
    packing: bool = False
    checkpoints: Checkpoints = Checkpoints()
    speed: Speed = Speed()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="before")
    @classmethod
    def rename(cls, values: object) -> object:
        """Takes the names that fields had in earlier versions."""
        return with_current_names(values) if isinstance(values, dict) else values

    @property
    def base_location(self) -> str:
        """What transformers loads: the folder's path where there is one, else the Hub repository's name."""
        return locate(self.base)


def locate(base: str) -> str:
    """A base's folder as a path where there is one (seen from the project), else the Hub repository's name."""
    folder = PROJECT / base
    return str(folder) if folder.is_dir() else base


def file_of(name: str, folder: Path = RECIPES, what: str = "recipe") -> Path:
    """The file of a recipe, or of what else `folder` holds, given by its name or path."""
    path, known = Path(name), names(folder)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise LabError(f"There is no {what} file {name}: check the path, or name one of {', '.join(known)}.")
        return path
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise LabError(f"There is no {what} “{name}”{nearest(name, known)}: choose one of {', '.join(known)}.")
    return path


def names(folder: Path = RECIPES) -> list[str]:
    """The names of the recipes that come with the project, or of what else `folder` holds."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_fields(path: Path, what: str = "recipe") -> dict:
    """The fields in a recipe's file, or in one like it, unchecked. Raises LabError where it isn't one."""
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise LabError(f"{path.name} is not UTF-8 text ({error.reason}): save it as such.") from error
    except yaml.YAMLError as error:
        raise LabError(f"{path.name} is not YAML ({where_not_yaml(error)}): mend it there.") from error
    if not isinstance(values, dict):
        raise LabError(f"{path.name} is not a {what}: it has to be a list of `key: value` lines.")
    return values


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe of that name or path with `key=value` overrides. Raises LabError for anything that isn't right."""
    path = file_of(name)
    values = read_fields(path)
    for old in RENAMED.keys() & values.keys():
        print(f"{path.name}: “{old}” is now called “{RENAMED[old]}”.", file=sys.stderr)
    values = with_current_names(values)
    for override in overrides or []:
        apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise LabError(f"{path.name}: {explain(error, Recipe)}") from error


def apply_override(values: dict, override: str) -> None:
    """Set one `key=value`, dots reaching into parts; the value is read as YAML."""
    key, equals, value = override.partition("=")
    if not equals:
        raise LabError(f"“{override}” is not an override: write it as key=value, such as epochs=3.")
    *parts, last = RENAMED.get(key, key).split(".")
    for part in parts:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise LabError(f"“{key}” can't be set: “{part}” holds a single value.")
    try:
        number = float(value)
        values[last] = int(value) if value.lstrip("+-").isdigit() else number
    except ValueError:
        try:
            values[last] = load_yaml(value)
        except yaml.YAMLError as error:
            raise LabError(f"The value of “{key}” can't be read ({where_not_yaml(error)}): mend it.") from error
