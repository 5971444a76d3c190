"""Reads and writes a model folder's run record, `run.json`: how the model was made, and its figures.

The folder's own file has every field. What leaves this machine is made of it by `training/publish/redact.py`: the
fields of `PublicFields`, those of `TextFields` only if the user says so, and none that is in neither.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, TypedDict

from inference.errors import LabError
from inference.run_records import with_current_names

Fields = dict[str, Any]


class SourceFact(TypedDict):
    """A data set that a run read. `kind`: "built-in", "hub" or "local" (a file or folder of the training machine)."""

    name: str
    kind: Literal["built-in", "hub", "local"]


class DataFacts(TypedDict, total=False):
    """The training split: the number of rows, their SHA-256, their kind, and the data sets that they are from."""

    examples: int
    sha256: str | None
    rows: Literal["conversations", "texts", "preferences"]
    sources: list[SourceFact]


class PublicFields(TypedDict, total=False):
    """Fields that anyone may read: settings, counts, measured figures and versions. No text of the data, no answer.

    Paths in them are published as names, see `training/publish/redact.py`.
    """

    # of a run
    recipe: Fields
    data: DataFacts
    steps: int
    tokens: int
    seconds: float
    peak_memory_bytes: int | None
    device: str
    processes: int
    plan: Fields
    losses: list[list[float]]
    precision: Fields
    validation: Fields
    versions: dict[str, str]
    environment: Fields
    reproduction: str
    # of its export and evaluation
    strength: float
    parity: dict[str, Fields]
    comparison: Fields
    figures: list[Fields]
    evaluation: dict[str, dict[str, int]]
    gate: Fields
    # of a model that no recipe made
    description: str
    license: str
    pipeline_tag: str
    library_name: str
    tags: list[str]
    data_set: str
    parameters: int
    context: int
    seed: int
    torch: str
    stages: list[Fields]


class TextFields(TypedDict, total=False):
    """Fields with text of the data, or with what a model answered to it."""

    answers: list[dict[str, str]]
    samples: list[Fields]
    gate_answers: list[dict[str, str]]


class RunRecord(PublicFields, TextFields):
    """All fields of `run.json`."""


def read_run_record(folder: Path) -> Fields:
    """A model folder's `run.json`, with the recipe under current names. Raises LabError if it is not readable."""
    try:
        run_record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{folder} has no readable run.json ({error}): run `python -m training sft` first.") from error
    if isinstance(run_record.get("recipe"), dict):
        run_record["recipe"] = with_current_names(run_record["recipe"])
    return run_record


def write_run_record(folder: Path, run_record: Fields) -> None:
    """Write a model folder's `run.json`. A process that is killed meanwhile leaves the old one."""
    new = folder / "run.json.new"
    new.write_text(json.dumps(run_record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(new, folder / "run.json")


def lacks_figures(folder: Path) -> bool:
    """Whether a run has neither an evaluation nor a comparison with its base. Raises LabError without a run record."""
    run_record = read_run_record(folder)
    return "recipe" in run_record and not {"figures", "comparison"} & run_record.keys()


def device_name() -> str:
    """The name of the GPU that this machine trains on, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
