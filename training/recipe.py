"""The recipe: all settings of a fine-tuning run, validated before anything is loaded.

A recipe is a YAML file in `training/recipes/` or anywhere else. The command line takes its name or its path, and
overrides of any field as `key=value` (`lora.r=8 epochs=3`). Each field's description says what it does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from inference.errors import LabError
from inference.run_records import with_current_names
from inference.settings import PROJECT
from inference.validation import explain, nearest, where_not_yaml
from training.overrides import apply_overrides

RECIPES = Path(__file__).with_name("recipes")


class Section(BaseModel):
    """A section of a recipe. It refuses unknown keys and values of a wrong type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Source(Section):
    """One data set. `training/data/reading/forms.py` lists the forms of rows."""

    name: str = Field(
        description="The data set: `emoji` (built in), a Hub data set, or a JSON Lines, JSON, Parquet or CSV file or "
        "folder."
    )
    config: str | None = Field(None, description="The configuration of a Hub data set that has several.")
    split: str = Field("train", description="The split to read; a data set with a single split needs no name.")
    revision: str | None = Field(
        None, description="A branch, tag or commit of a Hub data set: a commit makes the run repeatable."
    )
    columns: dict[str, str] = Field(
        {}, description="Which column means what, such as {question: input_text, answer: target}."
    )
    system: str | None = Field(None, description="A system prompt for conversations that have none.")
    weight: float = Field(
        1.0, gt=0, description="The share of this data set in a mixture, relative to the weights of the others."
    )


class Data(Source):
    """Which data set to learn from, and how much of it."""

    mixture: list[Source] = Field([], description="More data sets to mix with this one by their weights.")
    stream: bool = Field(
        False, description="Read only as many rows as `examples` needs: for data sets that do not fit on the disk."
    )
    examples: int | None = Field(
        None, gt=0, description="Conversations to train on: fewer make a shorter run; null takes all of them."
    )
    evaluation: int = Field(
        200, ge=0, description="Conversations held out for evaluation: more narrow its intervals and shrink training."
    )
    validation: int = Field(
        0,
        ge=0,
        description="Conversations held out for the loss while training, the best checkpoint and sweeps; 0: no curve.",
    )
    seed: int = Field(0, description="The seed of the split: another seed holds out other conversations.")


class Lora(Section):
    """The adapter's shape (Hu et al. 2021): an update of rank `r`, scaled by alpha / r, on all linear layers."""

    r: int = Field(
        16, gt=0, description="The rank of the update: higher learns and forgets more, and takes more memory and disk."
    )
    alpha: int = Field(
        16, gt=0, description="The update is scaled by alpha / r: higher acts like a higher learning rate."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The share of the adapter's inputs dropped in training: higher overfits less and learns slower.",
    )


def steps_or_share(name: str) -> BeforeValidator:
    """Accept a number of steps, or a share of all steps between 0 and 1, for the field `name`."""

    def check(value: object) -> object:
        is_steps = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if is_steps or (isinstance(value, float) and 0 < value < 1):
            return value
        raise ValueError(f"“{name}” can't be {value!r}: it is a number of steps, or a share of them such as 0.1.")

    return BeforeValidator(check)


class Checkpoints(Section):
    """When a run saves its state, so that it can resume here or on another machine."""

    steps: Annotated[int | float, steps_or_share("checkpoints.steps")] = Field(
        200, gt=0, description="Steps, or a share of all, between two checkpoints: fewer lose less work after a stop."
    )
    minutes: float = Field(
        10.0, gt=0, description="A checkpoint at least every n minutes: bounds the work lost when steps are slow."
    )
    keep: int = Field(
        2, gt=0, description="Checkpoints to keep: each takes about three times the adapter's size on disk."
    )


def on_off_as_text(value: object) -> object:
    """Turn a YAML boolean back into the word that was written: YAML reads on and off as true and false."""
    return ("off", "on")[value] if isinstance(value, bool) else value


Choice = Annotated[Literal["auto", "on", "off"], BeforeValidator(on_off_as_text)]


def auto_or_count(value: object) -> object:
    """Accept the word auto, or a positive number. Raises ValueError for anything else."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f"“speed.micro_batch” can't be {value!r}: it is auto, or a number of conversations.")


class Speed(Section):
    """Options that change speed and memory but not the result. `training/finetune/planning/` decides "auto"."""

    micro_batch: Annotated[int | Literal["auto"], BeforeValidator(auto_or_count)] = Field(
        "auto",
        description="Conversations that a GPU computes at once, a divisor of its part of the batch; auto takes the "
        "fastest number that fits.",
    )
    gradient_checkpointing: Choice = Field(
        "auto",
        description="Recompute activations: a third slower, much less memory; auto turns it on if memory is short.",
    )
    fused_kernels: Choice = Field(
        "auto", description="Liger's fused kernels: faster and less memory; auto uses them on a GPU if installed."
    )
    attention: Literal["auto", "eager", "sdpa", "varlen"] = Field(
        "auto",
        description="varlen computes each conversation by itself, without padding; sdpa is torch's fused kernel; auto "
        "takes the fastest.",
    )
    compile: Choice = Field(
        "auto", description="torch.compile: faster steps, but minutes of compiling for each batch length; auto is off."
    )


class Validation(Section):
    """The loss on `data.validation` conversations while the run trains."""

    steps: Annotated[int | float, steps_or_share("validation.steps")] = Field(
        0.1, description="Steps, or a share of all, between two measurements: fewer draw a finer curve; 0: none."
    )
    best: bool = Field(True, description="Keeps the checkpoint with the lowest loss as the result, not the last one.")
    patience: int | None = Field(
        None, gt=0, description="Stops the run after n measurements without a lower loss; null trains to the end."
    )
    samples: int = Field(3, ge=0, description="Answers to held-out questions that each measurement logs.")


class Recipe(Section):
    """One fine-tuning run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The run's name: its folder is runs/NAME.")
    title: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The name of the published model on the Hub."
    )
    base: str = Field(description="The base model: a Hub repository, or a folder relative to the project.")
    start: str | None = Field(
        None, description="A run on the same base whose adapter this run continues; null starts a new one."
    )
    chat_template: str | None = Field(
        None, description="The chat template of a base that has none: a name such as chatml, or a file."
    )
    data: Data = Field(description="The data set.")
    objective: Literal["sft", "dpo"] = Field(
        "sft", description="`sft` learns the answers, `dpo` to prefer the chosen answer of a pair to the rejected one."
    )
    method: Literal["auto", "qlora", "lora", "full"] = Field(
        "qlora",
        description="`qlora` holds the base in 4 bits, `lora` in 16 and is faster, "
        "`auto` chooses; `full` takes 16 bytes a parameter.",
    )
    memory: Literal["auto", "low"] = Field(
        "auto",
        description="`low` aims at the smallest card: one conversation at once, recomputed activations, 4 bits if the "
        "method is `auto`, and on a GPU an optimizer with 8 bits.",
    )
    lora: Lora = Field(Lora(), description="The adapter's shape; `full` ignores it.")
    peft: dict[str, Any] = Field({}, description="More options of PEFT's LoraConfig, such as {use_rslora: true}.")
    trl: dict[str, Any] = Field(
        {}, description="More options of TRL's SFTConfig or DPOConfig, such as {neftune_noise_alpha: 5}."
    )
    epochs: float = Field(
        1.0, gt=0, description="Passes over the data: more fit it better and forget more of the rest."
    )
    max_steps: int | None = Field(
        None, gt=0, description="Stops the run after n optimizer steps; null runs all epochs."
    )
    batch_size: int = Field(
        8,
        gt=0,
        description="Conversations of an optimizer step, on all GPUs together: more make fewer and steadier steps.",
    )
    learning_rate: float = Field(
        2e-4, gt=0, description="The peak learning rate: higher learns faster until it diverges."
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls to 0 after the warm-up; `constant` doesn't fall."
    )
    warmup_steps: Annotated[int | float, steps_or_share("warmup_steps")] = Field(
        5, description="Steps, or a share of all steps, in which the learning rate rises: more make the start steadier."
    )
    weight_decay: float = Field(0.0, ge=0, description="Pulls weights towards 0: higher values overfit less.")
    max_length: int = Field(
        2048, gt=0, description="Tokens of a conversation: longer ones are cut, and memory grows with it."
    )
    packing: bool = Field(
        False, description="Puts short conversations into one row: no padding, fewer and fuller steps."
    )
    validation: Validation = Field(Validation(), description="The loss on held-out conversations while training.")
    checkpoints: Checkpoints = Field(Checkpoints(), description="When the run saves its state.")
    report_to: list[Literal["tensorboard", "trackio", "wandb"]] = Field(
        ["tensorboard", "trackio"], description="Where the run's curves are written."
    )
    speed: Speed = Field(Speed(), description="Options that change speed and memory but not the result.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="The seed of order and weights: another one gives another adapter."
    )

    @model_validator(mode="before")
    @classmethod
    def rename(cls, values: object) -> object:
        """Accept the names that fields had in earlier versions."""
        return with_current_names(values) if isinstance(values, dict) else values

    @property
    def base_location(self) -> str:
        """What transformers loads: the path of a local folder, or the name of a Hub repository."""
        return locate(self.base)


def locate(base: str) -> str:
    """The path of a base if it is a folder (relative to the project), else the name of its Hub repository."""
    folder = PROJECT / base
    return str(folder) if folder.is_dir() else base


def find_file(name: str, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """The YAML file of a recipe, or of another `kind` in `folder`, by name or path. Raises LabError if missing."""
    path, known = Path(name), recipe_names(folder)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise LabError(f"There is no {kind} file {name}: check the path, or name one of {', '.join(known)}.")
        return path
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise LabError(f"There is no {kind} “{name}”{nearest(name, known)}: choose one of {', '.join(known)}.")
    return path


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """The sorted names of the YAML files in `folder`, by default of the recipes that come with the project."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_fields(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """The unvalidated fields of a recipe, or of another `kind` of YAML file. Raises LabError if it holds no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise LabError(f"{path.name} is not UTF-8 text ({error.reason}): save it as UTF-8.") from error
    except yaml.YAMLError as error:
        raise LabError(f"{path.name} is not valid YAML ({where_not_yaml(error)}): fix that line.") from error
    if not isinstance(values, dict):
        raise LabError(f"{path.name} is not a {kind}: write it as a list of `key: value` lines.")
    return values


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe with that name or path, with `key=value` overrides. Raises LabError if anything in it is invalid."""
    path = find_file(name)
    written = read_fields(path)
    values = with_current_names(written)
    if values.keys() != written.keys():
        size = values["batch_size"]
        print(f"{path.name}: “batch_size” now counts a whole step: write batch_size: {size} alone.", file=sys.stderr)
    apply_overrides(values, overrides or [])
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise LabError(f"{path.name}: {explain(error, Recipe)}") from error
