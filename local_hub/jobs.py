"""Jobs: commands that the Hub runs on its own machines. Here they run as processes of this machine.

There is no container and no image: a command finds the programs of this Hub's Python first. Its folder, home and caches
are new, its environment has the Job's variables and secrets, and its Hub is this one. Nobody pays.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from local_hub.access import HubError, require_account, require_write
from local_hub.dependencies import Who
from local_hub.storage import now

router = APIRouter(prefix="/api/jobs")
Stage = Literal["RUNNING", "COMPLETED", "ERROR", "CANCELED"]
KEPT = ("LANG", "OMP_NUM_THREADS", "TMPDIR")  # variables of this process that a Job gets
POLL = 0.05  # seconds between two looks at a Job's log

# Prices in micro-dollars a minute: https://huggingface.co/docs/hub/jobs-configuration, read in November 2026.
HARDWARE: dict[str, tuple[str, int, str, int, int]] = {  # memory, price, GPU, its number, its memory in GB
    "cpu-basic": ("16 GB", 167, "", 0, 0),
    "cpu-upgrade": ("32 GB", 500, "", 0, 0),
    "t4-small": ("15 GB", 6667, "T4", 1, 16),
    "l4x1": ("30 GB", 13333, "L4", 1, 24),
    "a10g-small": ("15 GB", 16667, "A10G", 1, 24),
    "a10g-largex4": ("184 GB", 83333, "A10G", 4, 24),
    "a100-large": ("142 GB", 41667, "A100", 1, 80),
    "h200": ("256 GB", 83333, "H200", 1, 141),
}


class JobSpec(BaseModel):
    """What a client asks for."""

    dockerImage: str
    command: list[str]
    flavor: str
    environment: dict[str, str] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    timeoutSeconds: int = 1800


class Job:
    """A command that runs or has ended, and the lines that it printed, each with its time."""

    def __init__(self, number: int, owner: str, spec: JobSpec, folder: Path, hub: str) -> None:
        self.id = f"{number:024x}"
        self.owner, self.spec = owner, spec
        self.created = now()
        self.log: list[tuple[str, str]] = []
        self.stage: Stage = "RUNNING"
        self.message: str | None = None
        folder.mkdir(parents=True)
        spared = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment = spared | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "HOME": str(folder),
            "HF_HOME": str(folder / "cache"),
            "HF_ENDPOINT": hub,
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            "JOB_ID": self.id,
            "ACCELERATOR": spec.flavor if HARDWARE[spec.flavor][2] else "none",
        }
        self.process = subprocess.Popen(
            spec.command, cwd=folder, env=environment | spec.environment | spec.secrets, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.timer = threading.Timer(spec.timeoutSeconds, self.end, ("ERROR", "Job timed out"))
        self.timer.daemon = True
        self.timer.start()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self) -> None:
        """Keep what the command prints until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append((now(), line.decode(errors="replace").rstrip("\n")))
        code = self.process.wait()
        self.timer.cancel()
        if self.stage == "RUNNING":
            self.stage = "ERROR" if code else "COMPLETED"
            self.message = f"Job failed with exit code: {code}" if code else None

    def end(self, stage: Stage, message: str | None) -> None:
        """Kill the command and all its children at once, as a lost machine does."""
        if self.stage == "RUNNING":
            self.stage, self.message = stage, message
            os.killpg(self.process.pid, signal.SIGKILL)

    def describe(self) -> dict[str, Any]:
        """The Job in the API's format. Values of secrets are never returned."""
        spec = self.spec.model_dump(include={"dockerImage", "command", "flavor", "environment", "labels"})
        owner = {"id": self.owner, "name": self.owner, "type": "user"}
        status = {"stage": self.stage, "message": self.message}
        secrets = dict.fromkeys(self.spec.secrets, "")
        return {"id": self.id, "createdAt": self.created, "owner": owner, "status": status, "secrets": secrets, **spec}

    async def events(self, tail: int | None) -> AsyncIterator[str]:
        """The log as server-sent events, to the end of the Job."""
        sent = max(len(self.log) - tail, 0) if tail else 0
        while True:
            ended = self.stage != "RUNNING"
            for time, line in self.log[sent:]:
                sent += 1
                yield f"data: {json.dumps({'data': line, 'timestamp': time})}\n\n"
            if ended:
                return
            await asyncio.sleep(POLL)


class Jobs:
    """All Jobs since this Hub was started, by their id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_id: dict[str, Job] = {}

    def start(self, owner: str, spec: JobSpec, hub: str) -> Job:
        """Run a command."""
        number = len(self.by_id) + 1
        while (self.folder / str(number)).exists():
            number += 1
        job = Job(number, owner, spec, self.folder / str(number), hub)
        self.by_id[job.id] = job
        return job

    def stop(self) -> None:
        """End all Jobs."""
        for job in self.by_id.values():
            job.end("CANCELED", None)


async def jobs_of(request: Request) -> Jobs:
    """This Hub's Jobs."""
    return request.app.state.jobs


Known = Annotated[Jobs, Depends(jobs_of)]


async def job_of(namespace: str, job_id: str, jobs: Known, who: Who) -> Job:
    """The Job of the path. 404 if it is someone else's."""
    job = jobs.by_id.get(job_id)
    if job is None or job.owner != namespace or require_account(who).account != namespace:
        raise HubError(404, "Job not found")
    return job


Found = Annotated[Job, Depends(job_of)]


@router.get("/hardware")
async def hardware() -> list[dict]:
    """The hardware that a Job can have, with its price."""
    return [
        {
            "name": name,
            "prettyName": f"{count}x Nvidia {gpu}" if gpu else name,
            "cpu": "2 vCPU",
            "ram": memory,
            "accelerator": {
                "type": "gpu", "model": gpu, "quantity": str(count), "vram": f"{count * gigabytes} GB",
                "manufacturer": "Nvidia",
            } if gpu else None,
            "unitCostMicroUSD": price,
            "unitCostUSD": price / 1e6,
            "unitLabel": "minute",
        }
        for name, (memory, price, gpu, count, gigabytes) in HARDWARE.items()
    ]  # fmt: skip


@router.post("/{namespace}")
async def run(request: Request, namespace: str, spec: JobSpec, jobs: Known, who: Who) -> dict:
    """Start a Job."""
    require_write(who, namespace)
    if spec.flavor not in HARDWARE:
        raise HubError(400, f"Invalid flavor: {spec.flavor}")
    return jobs.start(namespace, spec, str(request.base_url).rstrip("/")).describe()


@router.get("/{namespace}")
async def list_jobs(
    namespace: str,
    jobs: Known,
    who: Who,
    stage: Annotated[list[str] | None, Query()] = None,
    label: Annotated[list[str] | None, Query()] = None,
) -> list[dict]:
    """The Jobs of a namespace in one of the stages and with all labels, the newest first."""
    require_write(who, namespace)
    wanted = {tuple(text.split("=", 1)) for text in label or []}
    return [
        job.describe()
        for job in reversed(jobs.by_id.values())
        if job.owner == namespace and (not stage or job.stage in stage) and wanted <= job.spec.labels.items()
    ]


@router.get("/{namespace}/{job_id}")
async def inspect(job: Found) -> dict:
    """A Job."""
    return job.describe()


@router.get("/{namespace}/{job_id}/logs")
async def logs(job: Found, tail: int | None = None) -> StreamingResponse:
    """A Job's log as server-sent events."""
    return StreamingResponse(job.events(tail), media_type="text/event-stream")


@router.post("/{namespace}/{job_id}/cancel")
async def cancel(job: Found) -> dict:
    """Stop a Job."""
    job.end("CANCELED", None)
    return job.describe()
