"""Reads and writes a model folder's run record, `run.json`: how the model was made, and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.errors import LabError
from inference.run_records import with_current_names


def read_run_record(folder: Path) -> dict[str, Any]:
    """A model folder's `run.json`, with the recipe under current names. Raises LabError if it is not readable."""
    try:
        run_record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{folder} has no readable run.json ({error}): run `python -m training sft` first.") from error
    if isinstance(run_record.get("recipe"), dict):
        run_record["recipe"] = with_current_names(run_record["recipe"])
    return run_record


def write_run_record(folder: Path, run_record: dict[str, Any]) -> None:
    """Write a model folder's `run.json`."""
    (folder / "run.json").write_text(json.dumps(run_record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def device_name() -> str:
    """The name of the GPU that this machine trains on, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
