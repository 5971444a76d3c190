"""A job's folder and its state in `job.json`."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from inference.errors import LabError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
State = Literal["queued", "running", "stopped", "failed", "finished"]


class Job(BaseModel):
    """The state of a job. Times are in seconds since 1970.

    Attributes:
        name: of the job, its folder and its model.
        state: `stopped` also while the process still saves its checkpoint.
        message: one sentence if the job failed or was interrupted; else "".
        parent: the model that was taught lessons, with which the new one is compared; else "".
        queued: when it joined the queue, the order of which it is.
        started, ended: of the last attempt.
        command: of the last attempt, the one of `python -m training` that it has come to: "run" or "gate"; else "".
        pid, pid_started: the process of the last attempt. A process with another start time is another one.
        interruptions: how often the job's process was killed, such as by a restart, since it last got further.
        resumed_at: the step where the attempt that was interrupted last had begun.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    state: State
    queued: float
    parent: str = ""
    message: str = ""
    started: float | None = None
    ended: float | None = None
    command: str = ""
    pid: int | None = None
    pid_started: float | None = None
    interruptions: int = 0
    resumed_at: int = 0

    def process(self) -> psutil.Process | None:
        """The job's process if it is alive."""
        try:
            found = psutil.Process(self.pid) if self.pid else None
            alive = found is not None and found.status() != psutil.STATUS_ZOMBIE
            same = found is not None and abs(found.create_time() - (self.pid_started or 0)) < 1
        except psutil.Error:
            return None
        return found if alive and same else None


class JobFolder:
    """The files of one job."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe, self.log = path / "recipe.yaml", path / "output.log"
        self.model = path / path.name  # commands call a model by its folder

    def read(self) -> Job | None:
        """The state; None if there is none or if it is damaged."""
        try:
            return Job.model_validate_json((self.path / "job.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def write(self, job: Job) -> None:
        """Replace the state. A reader sees the old or the new one. Raises LabError if the disk is full."""
        new = self.path / f"job.json.{os.getpid()}"
        try:
            new.write_text(job.model_dump_json(indent=1), encoding="utf-8")
            os.replace(new, self.path / "job.json")
        except OSError as error:
            raise LabError(f"The training can't be written ({error.strerror}): make room on the disk.") from error

    def commands(self, job: Job) -> list[list[str]]:
        """The arguments of the `python -m training` commands that train the job, or resume it."""
        training = ["run", str(self.recipe), "--out", str(self.model)]
        return [training, *([["gate", str(self.model), "--against", job.parent]] if job.parent else [])]

    def gate(self) -> dict[str, Any]:
        """The result of the gate, which `training/lessons/gate.py` describes; empty if there is none."""
        try:
            found = json.loads((self.model / "gate.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def last_line(self) -> str:
        """The last line that the job has printed, in which a command says what is wrong."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 20_000))
                lines = re.split(r"[\r\n]+", file.read().decode("utf-8", "replace").strip())
        except OSError:
            return ""
        return lines[-1].strip()[:1000]


def check_name(name: str) -> str:
    """The name of a job. Raises LabError if a folder can't be called so."""
    if not NAME.fullmatch(name):
        raise LabError(
            f"“{name[:60]}” can't be a model's name: use up to 60 letters, digits, dots, dashes, underscores."
        )
    return name


def new_job(name: str, parent: str) -> Job:
    """A job that joins the queue now."""
    return Job(name=name, state="queued", queued=time.time(), parent=parent)
