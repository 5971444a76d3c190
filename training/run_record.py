"""A model folder's run record, `run.json`: how it was made and what it can do."""

from __future__ import annotations

import json
from pathlib import Path

from inference.errors import LabError
from inference.run_records import with_current_names


def read_run_record(folder: Path) -> dict:
    """A model folder's `run.json`."""
    try:
        run_record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = f"{folder} has no readable run.json ({error}): make it with `python -m training sft`."
        raise LabError(reason) from error
    if isinstance(run_record.get("recipe"), dict):
        run_record["recipe"] = with_current_names(run_record["recipe"])
    return run_record


def write_run_record(folder: Path, run_record: dict) -> None:
    """Write a model folder's `run.json`."""
    (folder / "run.json").write_text(json.dumps(run_record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def device_name() -> str:
    """What this machine trains on: the GPU's name, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
