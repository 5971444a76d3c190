"""The second training: the same recipe under the same plan, with as many threads as the first."""

from __future__ import annotations

from pathlib import Path

from training.finetune.planning.plan import Plan
from training.publish.card import write_card
from training.reproduce.original import Original
from training.run_record import device_name, read_run_record, write_run_record


def train_again(original: Original, out: Path) -> Path:
    """Train the recipe into `out` and return it. The same call resumes a training that was stopped. Raises LabError as
    training does."""
    import torch

    from training.finetune.processes.launch import fine_tune_on_all_gpus
    from training.finetune.run import fine_tune

    record = original.record
    if threads := (record.get("environment") or {}).get("threads"):
        torch.set_num_threads(threads)
    if record.get("device") == device_name() and record.get("processes", 1) == 1 and (plan := recorded_plan(original)):
        return fine_tune(original.recipe, out, plan=plan)
    return fine_tune_on_all_gpus(original.recipe, out)


def recorded_plan(original: Original) -> Plan | None:
    """The plan of the first training; None if it is not recorded, or recorded by another version."""
    try:
        return Plan(**original.record["plan"])
    except (KeyError, TypeError):
        return None


def add_to_card(folder: Path, line: str) -> None:
    """Add the line to a run's record and card."""
    record = read_run_record(folder)
    write_run_record(folder, record | {"reproduction": line})
    write_card(folder)
