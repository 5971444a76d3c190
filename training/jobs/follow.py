"""Follows a Job: shows its log and progress bar, and says how it ended."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import typer
from httpx2 import RequestError
from huggingface_hub import HfApi, JobInfo, JobStage
from huggingface_hub.errors import HfHubHTTPError

from inference.errors import LabError
from inference.hub.client import RETRY_STATUSES
from training.jobs.job import ENDED, stop_job, translate_job_errors

BAR = re.compile(r"\d+%\|.*\| *[\d.,]+\w*/[\d.,]+")  # a progress bar as tqdm draws it
KILLED = (137, 143)  # exit codes of a command that was killed, as the Hub does when it ends a container
PAUSES = (2, 5, 10, 30, 60)  # seconds before the log is requested again
DECIDE = 5.0  # seconds in which a second Ctrl-C stops the Job


@dataclass
class Log:
    """The lines that a Job has printed so far, and how they are shown. A progress bar replaces the one before it if
    standard error is a terminal."""

    lines: list[str] = field(default_factory=list)
    code: int | None = None
    over_bar: bool = False

    def add(self, line: str) -> None:
        """Keep and show a line. The last one, with the exit code, is only kept."""
        if line.startswith(ENDED):
            self.code = int(line.removeprefix(ENDED).strip(" ."))
            return
        self.lines.append(line)
        is_bar = bool(BAR.search(line)) and sys.stderr.isatty()
        start = "\r\033[K" if is_bar else "\n" if self.over_bar else ""
        print(f"{start}{line}", end="" if is_bar else "\n", file=sys.stderr, flush=True)
        self.over_bar = is_bar

    @property
    def last(self) -> str:
        """The last line that is not empty or a progress bar: of a failed command, its error."""
        return next((line.strip() for line in reversed(self.lines) if line.strip() and not BAR.search(line)), "no log")

    def addresses(self, start: str) -> list[str]:
        """The lines that begin with an address, in which a finished run names its repositories."""
        return [line.strip() for line in self.lines if line.startswith(start)]


def follow_job(api: HfApi, job: JobInfo) -> tuple[JobInfo, Log]:
    """Show a Job's log until it ends, and return its last state and the log.

    Ctrl-C stops watching; a second one within some seconds also stops the Job. Both end the program.

    Raises:
        LabError: the Hub does not answer for a while, or another refusal. The Job is not affected.
    """
    log = Log()
    try:
        with translate_job_errors(job.owner.name):
            for line in read_log(api, job):
                log.add(line)
            return api.wait_for_job(job.id, namespace=job.owner.name), log
    except KeyboardInterrupt:
        leave_or_stop(api, job)
        raise typer.Exit(130) from None


def read_log(api: HfApi, job: JobInfo) -> Iterator[str]:
    """Each line of a Job's log once, also if the connection breaks on the way. Raises the error of the last try."""
    seen, failures = 0, 0
    while True:
        try:
            lines = api.fetch_job_logs(job_id=job.id, namespace=job.owner.name, follow=True)
            for number, line in enumerate(lines):  # from the first line: the Hub repeats those that were seen
                if number >= seen:
                    seen, failures = number + 1, 0
                    yield line
            return
        except (HfHubHTTPError, RequestError) as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if failures == len(PAUSES) or status not in (None, *RETRY_STATUSES):
                raise
            pause = PAUSES[failures]
            print(f"The log is interrupted; the Job keeps running. Trying again in {pause} s.", file=sys.stderr)
            failures += 1
            time.sleep(pause)


def leave_or_stop(api: HfApi, job: JobInfo) -> None:
    """Leave the Job running, or stop it after a second Ctrl-C."""
    print(
        f"\nThe Job keeps running: {job.url}\nPress Ctrl-C again within {DECIDE:.0f} s to stop it. The same command "
        "follows it again, or resumes it.",
        file=sys.stderr,
    )
    try:
        time.sleep(DECIDE)
    except KeyboardInterrupt:
        stop_job(api, job)
        print("\nThe Job is stopped. The same command resumes it from its newest checkpoint.", file=sys.stderr)


def was_cut_off(job: JobInfo, log: Log) -> bool:
    """Whether the Hub ended the Job (time limit, lost machine), and not its command."""
    return job.status.stage == JobStage.ERROR and (log.code is None or log.code in KILLED)


def check_outcome(job: JobInfo, log: Log) -> None:
    """Raise LabError with the reason if a Job did not complete."""
    if job.status.stage == JobStage.ERROR:
        raise LabError(f"The Job failed: {log.last.rstrip('.')}. Its log is at {job.url}.")
    if job.status.stage != JobStage.COMPLETED:
        raise LabError("The Job was stopped: the same command resumes it from its newest checkpoint.")
