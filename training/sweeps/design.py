"""A sweep's design: which fields of a recipe vary, and which figure is the objective.

A sweep is a YAML file in `training/sweeps/` or elsewhere. The recipe of every run is made and checked before the first
run is trained. `runner.py` trains them.
"""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from inference.errors import LabError
from inference.settings import PROJECT
from inference.validation import explain
from training.recipe import Recipe, Section, find_file, load_recipe, on_off_as_text, read_fields

if TYPE_CHECKING:
    from optuna.trial import Trial

SWEEPS = PROJECT / "training" / "sweeps"
LOSS: Final = "held-out loss"
GROUPS = ("flags", "pairs", "other emoji")
Value = bool | int | float | str | None
Fields = dict[str, Value]
POINT, SEED = "point", "seed"


class Range(Section):
    """A range of values for a field, ends included; integers if both ends are. With `log` the logarithm is sampled
    uniformly."""

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def in_order(self) -> Range:
        """Refuse ends in the wrong order, and the logarithm of zero or less."""
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}: swap them")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm: set it above 0, or log to false")
        return self


class Sweep(Section):
    """Runs of one recipe that differ in `fields` and in named `points`. Each field's description says what it does."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The sweep's name: its folder is runs/sweeps/NAME."
    )
    recipe: str = Field(description="The recipe that all runs share: its name or its path.")
    overrides: Fields = Field({}, description="Fields of the recipe that are the same in all runs.")
    fields: dict[str, list[Value] | Range] = Field(
        {}, description="Fields that vary: a list of values, or a range with low, high and log."
    )
    points: dict[str, Fields] = Field({}, description="Named sets of fields: each is combined with all values.")
    trials: int | None = Field(
        None, gt=0, description="The number of runs if a field is a range; TPE chooses them (Bergstra et al. 2011)."
    )
    seeds: int = Field(1, gt=0, description="Runs of each combination, each with its own order and adapter.")
    objective: Literal["held-out loss", "flags", "pairs", "other emoji"] = Field(
        LOSS,
        description="The figure that judges the runs: the loss on `data.validation`, or the accuracy on a group of "
        "emoji questions that `evaluate` does not ask.",
    )
    every: int = Field(
        1, gt=0, description="Asks every n-th question, but all pairs: higher is faster and widens the intervals."
    )
    follow: str | None = Field(
        None, min_length=1, description="The report shows each question with this word, answer by answer."
    )
    pruning: Annotated[Literal["on", "off"], BeforeValidator(on_off_as_text)] = Field(
        "off", description="Stops runs whose training loss is above the median of the others."
    )

    @field_validator("fields", mode="before")
    @classmethod
    def values_or_range(cls, fields: object) -> object:
        """Check ranges one by one, so that an error names the field."""
        if not isinstance(fields, dict):
            return fields
        return {name: range_of(name, value) if isinstance(value, dict) else value for name, value in fields.items()}

    @model_validator(mode="after")
    def varies(self) -> Sweep:
        """Refuse a sweep in which nothing varies, and settings that contradict each other."""
        if not self.fields and not self.points:
            raise ValueError("the sweep is empty: name fields with their values, or points")
        for name, values in self.fields.items():
            if isinstance(values, list) and len({json.dumps(value) for value in values}) < max(len(values), 1):
                raise ValueError(f"“fields.{name}” needs one or more different values: it has {json.dumps(values)}")
        if self.continuous != (self.trials is not None):
            raise ValueError("“trials” is the number of runs if a field is a range: set it then, and only then")
        if self.seeds > 1 and (self.continuous or SEED in self.fields):
            raise ValueError("“seeds” repeats the points of a grid: omit it if a field is a range or the seed")
        return self

    @property
    def continuous(self) -> bool:
        """Whether a field is a range. Then values are chosen while results come in."""
        return any(isinstance(values, Range) for values in self.fields.values())

    @property
    def lower_is_better(self) -> bool:
        """Whether the objective is a loss."""
        return self.objective == LOSS

    @property
    def varied(self) -> list[str]:
        """The names by which points differ."""
        return [*([POINT] if self.points else []), *self.fields]

    def choices(self) -> dict[str, list[Value]]:
        """All listed values by field, including points and the seed."""
        first = self.recipe_of({}).seed
        choices: dict[str, list[Value]] = {POINT: [*self.points]} if self.points else {}
        choices |= {name: values for name, values in self.fields.items() if isinstance(values, list)}
        if SEED not in self.fields:
            choices[SEED] = [*range(first, first + self.seeds)]
        return choices

    def grid(self) -> list[Fields]:
        """Every combination of the listed values. Each point runs once before the next seed."""
        choices = self.choices()
        order = [SEED, *(name for name in choices if name != SEED)] if SEED not in self.fields else [*choices]
        return [dict(zip(order, values, strict=True)) for values in product(*(choices[name] for name in order))]

    def suggest(self, trial: Trial) -> Fields:
        """The values that Optuna suggests for a trial."""
        chosen: Fields = {name: trial.suggest_categorical(name, values) for name, values in self.choices().items()}
        for name, ends in self.fields.items():
            if isinstance(ends, Range):
                if isinstance(ends.low, int) and isinstance(ends.high, int):
                    chosen[name] = trial.suggest_int(name, ends.low, ends.high, log=ends.log)
                else:
                    chosen[name] = trial.suggest_float(name, ends.low, ends.high, log=ends.log)
        return chosen

    def recipe_of(self, chosen: Fields) -> Recipe:
        """The recipe of one run. Its name contains the sweep's name and the chosen values. Raises LabError if a value
        is invalid."""
        fields = self.overrides | self.points.get(str(chosen.get(POINT)), {}) | chosen
        fields.pop(POINT, None)
        # In the form of the command line, so that values are read in the same way.
        overrides = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in fields.items()]
        name = "_".join([self.name, *(f"{key}-{value}" for key, value in chosen.items())])
        try:
            return load_recipe(self.recipe, [*overrides, f"name={re.sub(r'[^A-Za-z0-9._-]+', '-', name)}"])
        except LabError as error:
            raise LabError(f"{self.name}: {error}") from error

    def check(self) -> None:
        """Raise LabError if the recipe of a run is invalid, or if the objective cannot be measured."""
        ends = {name: (r.low, r.high) for name, r in self.fields.items() if isinstance(r, Range)}
        corners: list[Fields] = [dict(zip(ends, values, strict=True)) for values in product(*ends.values())]
        recipes = [self.recipe_of(chosen | corner) for chosen in self.grid() for corner in corners]
        if twice := next((recipe for recipe in recipes if [r.name for r in recipes].count(recipe.name) > 1), None):
            raise LabError(f"{self.name}: two runs have the same name {twice.name}: write their values differently.")
        if any(recipe.data.validation < 2 for recipe in recipes):
            raise LabError(
                f"{self.name}: a sweep measures the held-out loss on a validation split of its own, and there is none: "
                "add data.validation to the overrides, such as data.validation: 200."
            )


def range_of(name: str, ends: dict) -> Range:
    """A field's range. Raises ValueError with the field's name."""
    try:
        return Range.model_validate(ends)
    except ValidationError as error:
        raise ValueError(f"“fields.{name}”: {explain(error, Range).rstrip('.')}") from error


def load_sweep(name: str) -> Sweep:
    """The sweep of that name or path, with every run checked. Raises LabError if something is invalid."""
    path = find_file(name, SWEEPS, "sweep")
    try:
        sweep = Sweep.model_validate(read_fields(path, "sweep"))
    except ValidationError as error:
        raise LabError(f"{path.name}: {explain(error, Sweep).rstrip('.')}.") from error
    sweep.check()
    return sweep
