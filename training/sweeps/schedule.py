"""Which run is next: the sweep's study in Optuna, shared by all workers.

Optuna keeps the runs and their results in a SQLite file in the sweep's folder. A worker holds a lock on its run's
folder. The lock ends with the process, however it ends: a run whose lock is free and which is not finished is queued
again. The same sweep may be started several times in parallel, such as once for each GPU with CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from inference.errors import LabError
from training.recipe import Recipe
from training.sweeps.design import Fields, Sweep

LOCK_TIMEOUT = 60  # seconds to wait for SQLite while another worker writes


class ClaimedRun(NamedTuple):
    """A run that this process trains; `lock` is an open file."""

    trial: optuna.Trial
    recipe: Recipe
    lock: TextIO


@contextmanager
def translate_storage_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the study's SQLite file into a LabError."""
    try:
        yield
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LabError(
            f"{folder / 'study.db'} is not readable ({reason}): move it away. Finished runs are not trained again."
        ) from error


@contextmanager
def schedule_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time change which runs are queued."""
    with (folder / "schedule.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(folder: Path, run: str) -> TextIO | None:
    """The lock on a run, held until the file is closed; None if another process holds it."""
    file = (folder / f"{run}.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def open_study(design: Sweep, folder: Path) -> optuna.Study:
    """The sweep's study; created if there is none. Raises LabError if the folder holds another design's."""
    storage = RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT}})
    with schedule_lock(folder):
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="minimize" if design.lower_is_better else "maximize",
            pruner=MedianPruner() if design.pruning == "on" else NopPruner(),
            load_if_exists=True,
        )
        current = {"sweep": design.model_dump(mode="json"), "recipe": design.recipe_of({}).model_dump(mode="json")}
        for part, fields in current.items():
            stored = study.user_attrs.get(part, fields)
            if changed := [key for key in fields if stored.get(key) != fields[key]]:
                raise LabError(
                    f"{folder} holds another {part} ({changed[0]}: {stored.get(changed[0])} → {fields[changed[0]]}): "
                    "choose another name or --out, or delete the folder."
                )
            study.set_user_attr(part, fields)
    return study


def chosen_fields(trial: FrozenTrial) -> Fields:
    """The fields of a trial, started or queued."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


def queue_missing_runs(study: optuna.Study, design: Sweep, folder: Path) -> None:
    """Queue every run that is not finished and has no worker: new runs, failed runs, and runs of killed workers."""
    with schedule_lock(folder):
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            run = trial.user_attrs.get("run")
            lock = try_lock(folder, run) if run else None
            if run is None or lock:
                study.tell(trial.number, state=TrialState.FAIL)
            if lock:
                lock.close()
        trials = study.get_trials(deepcopy=False)
        present = [chosen_fields(trial) for trial in trials if trial.state != TrialState.FAIL]
        failed = [chosen_fields(trial) for trial in trials if trial.state == TrialState.FAIL]
        for fields in failed if design.continuous else design.grid():
            if fields and fields not in present:
                study.enqueue_trial(fields)
                present.append(fields)


def claim_run(study: optuna.Study, design: Sweep, folder: Path) -> ClaimedRun | None:
    """The next run, locked for this process; None if there is none left."""
    with schedule_lock(folder):
        while True:
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            started = len(states) - states.count(TrialState.FAIL)
            if TrialState.WAITING not in states and started >= (design.trials or 0):
                return None
            # Each run has its own seed: with one seed, other workers and a resumed sweep would choose the same values.
            study.sampler = TPESampler(seed=len(states), constant_liar=True)
            trial = study.ask()
            recipe = design.recipe_of(design.suggest(trial))
            trial.set_user_attr("run", recipe.name)
            if lock := try_lock(folder, recipe.name):
                return ClaimedRun(trial, recipe, lock)
            trial.set_user_attr("error", "another worker has the same values")
            study.tell(trial, state=TrialState.FAIL)


def failure_reasons(study: optuna.Study) -> list[str]:
    """The errors of failed runs that have not succeeded since."""
    trials = study.get_trials(deepcopy=False)
    present = [chosen_fields(trial) for trial in trials if trial.state != TrialState.FAIL]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and "error" in trial.user_attrs]
    return [trial.user_attrs["error"] for trial in failed if chosen_fields(trial) not in present]
