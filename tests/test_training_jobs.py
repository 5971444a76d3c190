"""Training jobs of the page: a queue that survives kills, stops with a checkpoint, and says why a job ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from inference.errors import LabError
from inference.settings import PROJECT
from ui.training_jobs.job import JobFolder, new_job
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.progress import read_progress
from ui.training_jobs.runner import KILLED, MOST_INTERRUPTIONS, Runner, outcome

pytestmark = pytest.mark.xdist_group("training jobs")  # a group starts before single tests: this takes a minute
RECIPE = """\
name: {name}
title: {name}
base: adapters/nano
data: {{name: {data}, evaluation: 2, validation: 8}}
method: lora
max_steps: {steps}
batch_size: 2
max_length: 64
report_to: []
"""


@pytest.fixture
def jobs(tmp_path):
    """An empty queue. What still runs at the end of a test is killed."""
    jobs = Jobs(tmp_path / "jobs")
    yield jobs
    for job in jobs.list():
        jobs.change(job.name, ("queued", "running"), state="stopped")
        if process := job.process():
            process.kill()


def prepare(jobs: Jobs, name: str, steps: int) -> JobFolder:
    """A job that learns from 40 short rows."""
    folder = jobs.prepare(name)
    data = folder.path / "data.jsonl"
    rows = [{"question": f"Who is person {i}?", "answer": f"Person {i} bakes bread."} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder.recipe.write_text(RECIPE.format(name=name, data=data, steps=steps), encoding="utf-8")
    return folder


def wait_for(condition, seconds: float = 600.0):
    """The first true value of `condition`, which is called until then."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.1)
    return found


def state(jobs: Jobs, name: str) -> str:
    """A job's state."""
    return next(job.state for job in jobs.list() if job.name == name)


def test_a_stopped_job_resumes_where_it_stopped_and_finishes_in_spite_of_a_killed_runner(jobs):
    folder = prepare(jobs, "people", 60)
    jobs.add("people")
    wait_for(lambda: read_progress(folder.model).step >= 10)
    (job,) = jobs.list()
    assert job.state == "running" and job.process().nice() > 10
    assert psutil.Process(job.pid).parent().pid not in (os.getpid(), os.getppid())  # it does not end with the page
    jobs.stop("people")
    wait_for(lambda: not jobs.list()[0].process() and jobs.list()[0].ended)
    stopped_at = read_progress(folder.model).step
    assert "Stopped at step" in folder.last_line() and 10 <= stopped_at < 60
    wait_for(lambda: not runners(jobs))

    jobs.resume("people")
    wait_for(lambda: read_progress(folder.model).begin and state(jobs, "people") == "running")
    jobs.list()[0].process().kill()  # as if the machine's memory ran out
    wait_for(lambda: jobs.list()[0].interruptions == 1 and jobs.list()[0].process())
    for process in [*runners(jobs), jobs.list()[0].process()]:  # as if the machine started again
        process.kill()
    wait_for(lambda: not runners(jobs))
    again = Jobs(jobs.folder)
    again.ensure_runner()
    wait_for(lambda: state(again, "people") == "finished")
    assert again.list()[0].interruptions in (1, 2)  # 1 if the attempt after the first kill began at a later step
    progress = read_progress(folder.model)
    assert progress.step == progress.steps == 60 and progress.begin > 0
    assert progress.losses[0][0] == 10 and progress.held_out[-1][0] == 60
    assert progress.samples and {"question", "expected", "answer"} <= progress.samples[0].keys()
    assert (folder.model / "adapter-f16.gguf").is_file()


def runners(jobs: Jobs) -> list[psutil.Process]:
    """The runners of the queue."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "ui.training_jobs.runner" in line and str(jobs.folder.resolve()) in line:
            found.append(process)
    return found


def test_a_disk_that_fills_while_training_is_one_sentence_and_the_job_resumes(jobs):
    folder = prepare(jobs, "people", 4)
    folder.write(new_job("people", ""))
    command = [sys.executable, "-m", "ui.training_jobs.runner", str(jobs.folder)]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (500_000, 500_000))  # less than the adapter
    subprocess.run(command, cwd=PROJECT, preexec_fn=limit, check=True, timeout=600)
    (job,) = jobs.list()
    assert job.state == "failed" and "can't be written" in job.message and "make room on the disk" in job.message
    jobs.resume("people")
    wait_for(lambda: state(jobs, "people") == "finished")


def test_a_job_that_is_killed_again_and_again_has_failed(jobs):
    folder = prepare(jobs, "big", 4)
    folder.write(new_job("big", "").model_copy(update={"state": "running", "interruptions": MOST_INTERRUPTIONS - 1}))
    runner = Runner(jobs)
    for state_after in ("queued", "failed"):
        jobs.change("big", ("queued",), state="running")
        runner.requeue("big", KILLED)
        assert state(jobs, "big") == state_after
    message = jobs.list()[0].message
    folder.model.mkdir()
    (folder.model / "progress.jsonl").write_text('{"begin": 20, "steps": 49}\n', encoding="utf-8")
    jobs.change("big", ("failed",), state="running")
    runner.requeue("big", KILLED)  # it got further since: its interruptions count from 0 again
    assert state(jobs, "big") == "queued" and jobs.list()[0].interruptions == 1
    assert "the memory is exhausted" in message


def test_a_job_that_fails_says_why_and_the_next_one_runs(jobs):
    folder = prepare(jobs, "bad", 5)
    (folder.path / "data.jsonl").write_bytes(b"\x00\xff no known form")
    second = jobs.prepare("second")
    second.recipe.write_text("name: second\n", encoding="utf-8")
    jobs.add("bad")
    jobs.add("second")
    wait_for(lambda: {job.state for job in jobs.list()} == {"failed"})
    messages = {job.name: job.message for job in jobs.list()}
    assert "data.jsonl" in messages["bad"] and "“title” is missing" in messages["second"]


def test_outcomes_are_one_sentence(tmp_path):
    folder = JobFolder(tmp_path)
    folder.log.write_text("bar 1\rbar 2\nThe disk is full: free some space.\n", encoding="utf-8")
    assert outcome(0, folder) == ("finished", "")
    assert outcome(2, folder) == ("failed", "The disk is full: free some space.")
    assert outcome(-signal.SIGKILL, folder) == ("failed", KILLED)


def test_names_and_jobs_that_are_not_there_are_refused(jobs):
    for name in ("../x", "", "a/b", "x" * 61):
        with pytest.raises(LabError, match="can't be a model's name"):
            jobs.prepare(name)
    with pytest.raises(LabError, match="There is no training"):
        jobs.stop("nothing")
    assert jobs.list() == [] and read_progress(Path("nowhere")).step == 0
