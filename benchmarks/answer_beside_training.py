"""How much later does the first token of an answer come while the page trains a model?

The training is a job of the page, with the lowest priority. It is paused and continued in turns, so that both answers
of a pair meet the same machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil

from benchmarks.report import Figure, timed
from benchmarks.running_app import Client, RunningApp
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.progress import read_progress

RECIPE = """\
name: beside
title: Beside
base: adapters/nano
data: {name: emoji, validation: 0}
method: lora
epochs: 100
report_to: []
"""
START_SECONDS = 180.0
SETTLE_SECONDS = 0.3  # after the training was paused or continued


@contextmanager
def training() -> Iterator[psutil.Process]:
    """The process of a job that trains the nano for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="beside-", ignore_cleanup_errors=True) as folder:
        jobs = Jobs(Path(folder))
        made = jobs.prepare("beside")
        made.recipe.write_text(RECIPE, encoding="utf-8")
        jobs.add("beside")
        end = time.monotonic() + START_SECONDS
        while not read_progress(made.model).steps and time.monotonic() < end:
            time.sleep(0.2)
        process = jobs.list()[0].process()
        if process is None or not read_progress(made.model).steps:
            raise RuntimeError(f"The training has not started: {made.last_line()}")
        try:
            yield process
        finally:
            jobs.change("beside", ("queued", "running"), state="stopped")
            process.kill()
            process.wait(10)


def first_token(client: Client, number: int) -> float:
    """Seconds from a question to the first text of its answer."""
    with timed() as watch:
        answer = client.call("ask", question=f"Which emoji shows a panda? ({number})", model="nano-emoji")
        next(event for event in answer if event.name in ("generating", "complete"))
    list(answer)
    return watch.seconds


def measure(quick: bool) -> list[Figure]:
    """Measure 30 pairs, or with `quick` two."""
    pairs = 2 if quick else 30
    alone, beside = [], []
    with RunningApp(QUESTIONS_PER_MINUTE="0") as app, training() as process:
        client = app.client()
        first_token(client, 0)  # loads the model
        for number in range(1, pairs + 1):
            process.suspend()
            time.sleep(SETTLE_SECONDS)
            alone.append(first_token(client, number))
            process.resume()
            time.sleep(SETTLE_SECONDS)
            beside.append(first_token(client, number))
    ratio = median(b / a for a, b in zip(alone, beside, strict=True))
    return [
        Figure(f"first token alone, ms (median of {pairs})", f"{1000 * median(alone):.0f}"),
        Figure("first token beside a training, ms", f"{1000 * median(beside):.0f}"),
        Figure("ratio (median of pairs)", f"{ratio:.2f}", "≤ 2"),
    ]
