"""A sweep: many runs of one recipe, compared. `python -m training sweep FILE [--workers N]`

`design.py` checks the design, `schedule.py` decides which run is next, `trial.py` trains and measures one run and
`sweep_report.py` writes the report. This module starts the workers. The same command resumes a sweep.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import optuna
from optuna.trial import TrialState

from inference.errors import LabError
from inference.settings import PROJECT
from training.sweeps.design import Sweep, load_sweep
from training.sweeps.schedule import (
    ClaimedRun,
    claim_run,
    failure_reasons,
    open_study,
    queue_missing_runs,
    translate_storage_errors,
)

FOLDER = PROJECT / "runs" / "sweeps"
PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)
PROCESSES = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork


def run_sweep(name: str, workers: int = 1, out: Path | None = None, report: Path | None = None) -> Path:
    """Run or resume a sweep and return the path of its report.

    Args:
        name: the sweep's name or path.
        workers: how many runs are trained in parallel.
        out: the sweep's folder; None is runs/sweeps/NAME.
        report: a folder for a copy of the report.

    Raises:
        LabError: runs failed. The others are finished and in the report.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    design = load_sweep(name)
    folder = out or FOLDER / design.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(f"{folder} is not writable ({error.strerror}): choose another --out.") from error
    with translate_storage_errors(folder):
        study = open_study(design, folder)
        queue_missing_runs(study, design, folder)
        exit_codes = run_workers(name, folder, workers)
        from training.sweeps.sweep_report import write_report

        path = write_report(design, study, failure_reasons(study), folder)
    if report:
        report.mkdir(parents=True, exist_ok=True)
        for file in (path, *folder.glob("*.png")):
            shutil.copy(file, report)
    check_all_finished(study, exit_codes)
    return path


def run_workers(name: str, folder: Path, workers: int) -> list[int]:
    """Start the workers, each on its share of the cores, and wait. Returns the exit codes of those that failed."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // workers)))
    processes = [
        PROCESSES.Process(target=work, args=(name, folder, cores[number::workers] or cores, number))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes if process.exitcode]


def work(name: str, folder: Path, cores: list[int], number: int) -> None:
    """A worker process: train runs until none is left. It is killed when the command ends."""
    from training.finetune.processes.launch import use_one_gpu

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, cores)
    use_one_gpu(number)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with translate_storage_errors(folder):
            design = load_sweep(name)
            study = open_study(design, folder)
            while run := claim_run(study, design, folder):
                with run.lock:
                    run_trial(study, run, design, folder / run.recipe.name)
    except LabError as error:
        sys.exit(str(error))


def run_trial(study: optuna.Study, run: ClaimedRun, design: Sweep, out: Path) -> None:
    """Train and measure one run in the folder `out`, and store its result. An error fails this run only."""
    from training.sweeps.trial import PruningCallback, measure, objective

    callback = PruningCallback(run.trial, 1.0 if design.lower_is_better else -1.0)
    try:
        measured = measure(run.recipe, design, out, callback)
        value = objective(measured, design.objective)
    except optuna.TrialPruned:
        study.tell(run.trial, state=TrialState.PRUNED)
    except LabError as error:
        run.trial.set_user_attr("error", str(error))
        study.tell(run.trial, state=TrialState.FAIL)
    else:
        run.trial.set_user_attr("measured", measured)
        study.tell(run.trial, value)


def check_all_finished(study: optuna.Study, exit_codes: list[int]) -> None:
    """Raise LabError if a run failed or is not finished."""
    if errors := failure_reasons(study):
        raise LabError(
            f"Runs that failed: {len(errors)}. The first error: {errors[0]} The same command tries them again."
        )
    if exit_codes:
        raise LabError(f"A worker ended with code {exit_codes[0]}, see above: the same command resumes the sweep.")
    if unfinished := sum(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
        raise LabError(f"Another command still trains {unfinished} run(s): repeat this command when it has ended.")
