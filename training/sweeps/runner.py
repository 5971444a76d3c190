"""A sweep: many runs of one recipe, compared. `python -m training sweep FILE [--workers N]`

The design is `design.py`'s, one run `trial.py`'s, the report `sweep_report.py`'s. Here Optuna hands out the runs and
keeps what came of them in a SQLite file in the sweep's folder, from which the same command goes on. Workers are
processes that share that file; who works on a run holds a lock on its folder, which ends with the process, however it
ends: a run whose lock is free and which isn't done is taken up again. The same sweep may be started several times at
once, such as once for each GPU with CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from inference.errors import LabError
from inference.settings import PROJECT
from training.recipe import Recipe
from training.sweeps.design import Fields, Sweep, load_sweep

FOLDER = PROJECT / "runs" / "sweeps"
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def sweep(name: str, workers: int = 1, out: Path | None = None, report: Path | None = None) -> Path:
    """Run the sweep of that name or path to its end, or go on with it, and return its report. `report` is a folder that
    gets a copy. Raises LabError where runs failed: the others are done and reported."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    design = load_sweep(name)
    folder = out or FOLDER / design.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{folder} can't be written ({error.strerror}): choose another --out.") from error
    with translate_storage_errors(folder):
        study = open_study(design, folder)
        hand_out(study, design, folder)
        ended = run_workers(name, folder, workers)
        from training.sweeps.sweep_report import write_report

        path = write_report(design, study, failures(study), folder)
    if report:
        report.mkdir(parents=True, exist_ok=True)
        for made in (path, *folder.glob("*.png")):
            shutil.copy(made, report)
    complain(study, ended)
    return path


@contextmanager
def translate_storage_errors(folder: Path) -> Iterator[None]:
    """Turn what a broken storage raises into a sentence."""
    try:
        yield
    except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LabError(
            f"{folder / 'study.db'} can't be used ({reason}): move it away; finished runs are not trained again."
        ) from error


@contextmanager
def asking(folder: Path) -> Iterator[None]:
    """One process at a time looks what there is to do."""
    with (folder / "asking.lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock(folder: Path, run: str) -> TextIO | None:
    """The lock on a run, held until the file is closed; None where another process holds it."""
    file = (folder / f"{run}.lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def open_study(design: Sweep, folder: Path) -> optuna.Study:
    """The sweep's study. Raises LabError where the folder holds another design's."""
    waiting = {"connect_args": {"timeout": 60}}  # seconds, while another worker writes
    storage = RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs=waiting)
    with asking(folder):
        study = optuna.create_study(
            storage=storage,
            study_name="sweep",
            direction="minimize" if design.lower_is_better else "maximize",
            pruner=MedianPruner() if design.pruning == "on" else NopPruner(),
            load_if_exists=True,
        )
        written = {"sweep": design.model_dump(mode="json"), "recipe": design.recipe_of({}).model_dump(mode="json")}
        for part, fields in written.items():
            known = study.user_attrs.get(part, fields)
            if changed := [key for key in fields if known.get(key) != fields[key]]:
                raise LabError(
                    f"{folder} holds another {part} ({changed[0]}: {known.get(changed[0])} → {fields[changed[0]]}): "
                    "choose another name or --out, or delete it."
                )
            study.set_user_attr(part, fields)
    return study


def chosen(trial: FrozenTrial) -> Fields:
    """The fields of a trial, be it begun or waiting."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


def hand_out(study: optuna.Study, design: Sweep, folder: Path) -> None:
    """Have every run wait that isn't done and that nobody works on: new, failed, or its worker was killed."""
    with asking(folder):
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            run = trial.user_attrs.get("run")
            held = lock(folder, run) if run else None
            if run is None or held:
                study.tell(trial.number, state=TrialState.FAIL)
            if held:
                held.close()
        trials = study.get_trials(deepcopy=False)
        alive = [chosen(trial) for trial in trials if trial.state != TrialState.FAIL]
        wanted = [chosen(t) for t in trials if t.state == TrialState.FAIL] if design.continuous else design.grid()
        for fields in wanted:
            if fields and fields not in alive:
                study.enqueue_trial(fields)
                alive.append(fields)


def run_workers(name: str, folder: Path, workers: int) -> list[int]:
    """Start the workers, each on its share of the cores, and return the exit codes of those that ended badly."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // workers)))
    context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    processes = [
        context.Process(target=work, args=(name, folder, cores[number::workers] or cores)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes if process.exitcode]


def work(name: str, folder: Path, cores: list[int]) -> None:
    """A worker: takes runs until none is left. It doesn't outlive the command."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, cores)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with translate_storage_errors(folder):
            design = load_sweep(name)
            study = open_study(design, folder)
            while taken := take(study, design, folder):
                trial, recipe, held = taken
                with held:
                    run_trial(study, trial, design, recipe, folder / recipe.name)
    except LabError as error:
        sys.exit(str(error))


def take(study: optuna.Study, design: Sweep, folder: Path) -> tuple[optuna.Trial, Recipe, TextIO] | None:
    """The next run with its lock, or None where all are taken."""
    with asking(folder):
        while True:
            states = [trial.state for trial in study.get_trials(deepcopy=False)]
            begun = len(states) - states.count(TrialState.FAIL)
            if TrialState.WAITING not in states and begun >= (design.trials or 0):
                return None
            # With another seed for each run: else workers, and a command that goes on, would choose the same again.
            study.sampler = TPESampler(seed=len(states), constant_liar=True)
            trial = study.ask()
            recipe = design.recipe_of(design.choose(trial))
            trial.set_user_attr("run", recipe.name)
            if held := lock(folder, recipe.name):
                return trial, recipe, held
            trial.set_user_attr("error", "another worker is at the same values")
            study.tell(trial, state=TrialState.FAIL)


def run_trial(study: optuna.Study, trial: optuna.Trial, design: Sweep, recipe: Recipe, out: Path) -> None:
    """Train and measure one run, and keep what came of it; a run that fails doesn't end the others."""
    from training.sweeps.trial import Watch, measure, objective

    watch = Watch(trial, 1.0 if design.lower_is_better else -1.0)
    try:
        measured = measure(recipe, design, out, watch)
        value = objective(measured, design.objective)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except LabError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        trial.set_user_attr("measured", measured | {"began_at": watch.began_at})
        study.tell(trial, value)


def failures(study: optuna.Study) -> list[str]:
    """Why runs failed that are not done since."""
    trials = study.get_trials(deepcopy=False)
    alive = [chosen(trial) for trial in trials if trial.state != TrialState.FAIL]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and "error" in trial.user_attrs]
    return [trial.user_attrs["error"] for trial in failed if chosen(trial) not in alive]


def complain(study: optuna.Study, ended: list[int]) -> None:
    """Raise LabError where runs are not done."""
    if errors := failures(study):
        raise LabError(
            f"Runs that failed: {len(errors)}. The first because: {errors[0]} The same command tries them again."
        )
    if ended:
        raise LabError(f"A worker ended with {ended[0]}, see above: the same command goes on.")
    if unfinished := sum(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
        raise LabError(f"Runs that another command is still at: {unfinished}. Call this one again when it has ended.")
