"""Works off the queue of jobs, one at a time and with low priority, until none is left.

The page starts it: `python -m ui.training_jobs.runner FOLDER --detach`. Jobs whose runner has ended are found again by
process number and start time. Those whose process was killed resume from their checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from filelock import Timeout

from inference.settings import PROJECT
from ui.training_jobs.job import Job, JobFolder
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.progress import read_progress

LOCK_SECONDS = 5.0  # that a runner waits for one that is about to end
POLL_SECONDS = 0.5
STOP_SECONDS = 60.0  # that a process has for its checkpoint
MOST_INTERRUPTIONS = 3  # in a row, without a step in between that was kept
LOWEST_PRIORITY = 19
IN_VAIN = f"{MOST_INTERRUPTIONS + 1} times without progress"
INTERRUPTED = f"The training was interrupted {IN_VAIN}: look for the reason, then resume it."
KILLED = (
    f"The training was killed {IN_VAIN}, which usually means that the memory is exhausted: end other programs, then "
    "resume it; or start one with a smaller batch_size or max_length."
)


class Runner:
    """Runs the jobs of one folder."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def run(self) -> None:
        """Return when the queue is empty. Does nothing if another runner is alive."""
        try:
            with self.jobs.lock("runner").acquire(timeout=LOCK_SECONDS):
                self.recover()
                while waiting := [job for job in self.jobs.list() if job.state == "queued"]:
                    self.run_job(min(waiting, key=lambda job: job.queued))
        except Timeout:
            return

    def recover(self) -> None:
        """Wait for processes that an earlier runner has started, then put interrupted jobs back into the queue."""
        for job in self.jobs.list():
            if process := job.process():
                self.wait(job.name, process)
        for job in self.jobs.list():
            if job.state == "running":
                self.requeue(job.name, INTERRUPTED)

    def requeue(self, name: str, message: str) -> None:
        """Put a job that was interrupted back into the queue. After several times without progress it has failed, with
        that message."""
        folder = JobFolder(self.jobs.folder / name)
        job = folder.read()
        if job is None:
            return
        begin = read_progress(folder.model).begin
        before = 0 if begin > job.resumed_at else job.interruptions
        changes: dict[str, Any] = {"state": "queued", "interruptions": before + 1, "resumed_at": begin}
        if before >= MOST_INTERRUPTIONS:
            changes = {"state": "failed", "message": message, "ended": time.time()}
        self.jobs.change(name, ("running",), **changes)

    def run_job(self, job: Job) -> None:
        """Run a job to its end, and write how it ended."""
        folder = JobFolder(self.jobs.folder / job.name)
        code: int | None = 0
        for arguments in folder.commands(job):
            code = self.run_command(job.name, folder, arguments)
            if code != 0:
                break
        state, message = outcome(code, folder)
        self.jobs.change(job.name, ("stopped",), ended=time.time())
        if message == KILLED:
            self.requeue(job.name, message)
            return
        self.jobs.change(job.name, ("running",), state=state, message=message, ended=time.time())

    def run_command(self, name: str, folder: JobFolder, arguments: list[str]) -> int | None:
        """Run one of a job's commands to its end; returns its exit code."""
        with folder.log.open("ab") as log:
            process = psutil.Popen(
                [sys.executable, "-m", "training", *arguments],
                cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
            started = {"pid": process.pid, "pid_started": process.create_time(), "command": arguments[0], "ended": None}
            self.jobs.change(name, ("queued", "running", "stopped"), **started)
            self.jobs.change(name, ("queued",), state="running", message="", started=time.time())
            return self.wait(name, process)

    def wait(self, name: str, process: psutil.Process) -> int | None:
        """Wait until a job's process has ended; end it if the job is stopped. Returns its exit code, if it is known."""
        stopping: float | None = None
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except psutil.TimeoutExpired:
                job = JobFolder(self.jobs.folder / name).read()
            if stopping is None and (job is None or job.state == "stopped"):
                stopping = time.monotonic()
                process.terminate()
            elif stopping is not None and time.monotonic() - stopping > STOP_SECONDS:
                process.kill()


def outcome(code: int | None, folder: JobFolder) -> tuple[str, str]:
    """The state of a job whose process ended with that exit code, and what the page says about it."""
    gate = folder.gate()
    if code == 0 or (code == 1 and gate):
        now = "It is the default model now." if gate.get("passed") else "It is in the list of models, marked."
        return "finished", f"{gate['verdict']} {now}" if gate else ""
    if code == 2:
        return "failed", folder.last_line()
    if code is not None and code < 0:
        return "failed", KILLED
    return "failed", f"The training ended with an unexpected error ({folder.last_line()}): see its output."


def main() -> None:
    """Run the jobs of the folder that the command line names; with `--detach` in a process of its own."""
    folder, *detach = sys.argv[1:]
    if detach:
        command = [sys.executable, "-m", "ui.training_jobs.runner", folder]
        null = subprocess.DEVNULL
        subprocess.Popen(command, cwd=PROJECT, stdin=null, stdout=null, stderr=null, start_new_session=True)
        return
    if hasattr(os, "nice"):
        os.nice(LOWEST_PRIORITY)
    Runner(Jobs(Path(folder))).run()


if __name__ == "__main__":
    main()
