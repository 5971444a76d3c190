"""The jobs as the page sees them: add, list, stop, resume, delete. The runner does the work."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from inference.errors import LabError
from inference.settings import PROJECT
from ui.training_jobs.job import Job, JobFolder, check_name, new_job

MOST_JOBS = 50  # folders
START_SECONDS = 10.0  # in which a runner that was started takes its lock
KEPT = ("queued", "running")  # states in which a job needs a runner


class Jobs:
    """The jobs in `folder`, which is created when it is first needed. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._runner_started = 0.0  # on the monotonic clock
        self._starting = threading.Lock()

    def lock(self, name: str) -> FileLock:
        """A lock between processes: `state` for changes of states, `runner` as long as a runner lives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{name}.lock")

    def job_folder(self, name: str) -> JobFolder:
        """The folder of a job. Raises LabError if there is no such job."""
        found = JobFolder(self.folder / check_name(name))
        if found.read() is None:
            raise LabError(f"There is no training “{name}”: it was deleted.")
        return found

    def list(self) -> list[Job]:
        """All jobs, the newest first."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        found = [job for path in paths if path.is_dir() and (job := JobFolder(path).read())]
        return sorted(found, key=lambda job: job.queued, reverse=True)

    def check_free(self, name: str) -> Path:
        """The folder for a new job of that name. Raises LabError if the name is taken."""
        path = self.folder / check_name(name)
        if JobFolder(path).read() is not None:
            raise LabError(f"There is a training “{name}” already: choose another name, or delete it.")
        return path

    def prepare(self, name: str) -> JobFolder:
        """A new folder for a job's recipe and data. Raises LabError if the name is taken or there are too many."""
        path = self.check_free(name)
        if len(self.list()) >= MOST_JOBS:
            raise LabError(f"There are {MOST_JOBS} trainings, the most that are kept: delete one.")
        shutil.rmtree(path, ignore_errors=True)  # one that was not started
        path.mkdir(parents=True)
        return JobFolder(path)

    def add(self, name: str, parent: str = "") -> Job:
        """Put a prepared job into the queue. `parent` is the model that lessons are taught to."""
        folder, job = JobFolder(self.folder / check_name(name)), new_job(name, parent)
        with self.lock("state"):
            folder.write(job)
        self.ensure_runner()
        return job

    def change(self, name: str, only_if: tuple[str, ...], **changes: Any) -> Job:
        """Change fields of a job if its state is one of `only_if`; returns it as it then is."""
        with self.lock("state"):
            folder = self.job_folder(name)
            job = folder.read()
            assert job is not None  # the lock is held
            if job.state in only_if:
                job = job.model_copy(update=changes)
                folder.write(job)
        return job

    def stop(self, name: str) -> Job:
        """Take a job from the queue, or end its process after a checkpoint. The runner does that within seconds."""
        job = self.change(name, KEPT, state="stopped", message="")
        self.ensure_runner()
        return job

    def resume(self, name: str) -> Job:
        """Put a stopped or failed job into the queue again."""
        job = self.change(name, ("stopped", "failed"), state="queued", queued=time.time(), message="", interruptions=0)
        self.ensure_runner()
        return job

    def delete(self, name: str) -> None:
        """Delete a job with its model. Raises LabError if it runs."""
        with self.lock("state"):
            folder = self.job_folder(name)
            job = folder.read()
            if job and (job.state in KEPT or job.process()):
                raise LabError(f"{name} is in training: stop it first.")
            shutil.rmtree(folder.path)

    def ensure_runner(self) -> None:
        """Start a runner if a job needs one and none is alive. Quick."""
        if not any(job.state in KEPT or (job.state == "stopped" and job.process()) for job in self.list()):
            return
        with self._starting:
            if time.monotonic() - self._runner_started < START_SECONDS and self._runner_started:
                return
            try:
                with self.lock("runner").acquire(timeout=0):
                    pass
            except Timeout:
                return
            self._runner_started = time.monotonic()
            start_runner(self.folder)


def start_runner(folder: Path) -> None:
    """Start a runner that is no child of this process, which ends its children when it ends."""
    subprocess.run(
        [sys.executable, "-m", "ui.training_jobs.runner", str(folder.resolve()), "--detach"],
        cwd=PROJECT, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
