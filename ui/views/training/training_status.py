"""How far a training is: a sentence, its curves as rows for a plot, and sample answers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from ui.training_jobs.job import Job
from ui.training_jobs.progress import RunProgress
from ui.views.charts import thin_out

STARTS, RESUMES = "Starts.", "Resumes in a moment."
TRAINING, HELD_OUT = "training", "held out"
SAMPLE = ("question", "expected", "answer")
Row = dict[str, float | str]  # of the plot


def status_text(job: Job, progress: RunProgress, jobs: Sequence[Job]) -> str:
    """Return the state of a job in one or two sentences."""
    if job.message:
        return job.message
    alive = job.process() is not None
    done = f"Step {progress.step:,} of {progress.steps:,}" if progress.steps else "Reading data and base"
    if job.state == "stopped":
        return f"Saving a checkpoint at step {progress.step:,}." if alive else f"{done}. Stopped."
    if job.state == "finished":
        took = "" if progress.begin else f" in {duration((job.ended or 0) - (job.started or 0))}"  # of all attempts
        return f"Finished{took}. Choose {job.name} in the chat."
    if job.state == "queued":
        return queued_text(job, progress, jobs)
    if job.command == "gate":
        return (
            f"Training is done. Comparing the model with {Path(job.parent).name}: the lessons, and what it should keep."
        )
    if progress.steps and progress.step >= progress.steps:
        return "Training is done. Writing and checking the model."
    if not alive:
        return f"{before_text(progress, True)}{RESUMES if progress.steps else STARTS}"
    if progress.steps and progress.began < (job.started or 0):
        return f"{before_text(progress, job.interruptions > 0)}Reading data and base to resume."
    speed = f", {progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else ""
    left = f", about {duration(progress.seconds_left)} left" if progress.seconds_left else ""
    return f"{done}{speed}{left}.{f' Resumed at step {progress.begin:,}.' if progress.begin else ''}"


def queued_text(job: Job, progress: RunProgress, jobs: Sequence[Job]) -> str:
    """Return what a job in the queue waits for."""
    before = before_text(progress, job.interruptions > 0)
    ahead = sum(other.state in ("queued", "running") and other.queued < job.queued for other in jobs)
    if ahead:
        return f"{before}Waits for {ahead} other {'training' if ahead == 1 else 'trainings'}."
    return f"{before}{RESUMES if before else STARTS}"


def before_text(progress: RunProgress, interrupted: bool) -> str:
    """Return how far earlier attempts came, as a sentence with a space; "" if none has begun to train."""
    end = "Interrupted" if interrupted else "Stopped"
    return f"{end} at step {progress.step:,} of {progress.steps:,}. " if progress.steps else ""


def duration(seconds: float) -> str:
    """Return a duration with one unit."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def status_html(job: Job, progress: RunProgress, jobs: Sequence[Job]) -> str:
    """Return the state of a job with a bar."""
    share = progress.step / progress.steps if progress.steps else 0.0
    text = html.escape(status_text(job, progress, jobs))
    bar = f'<progress value="{share:.3f}" max="1"></progress>' if progress.steps and job.state != "finished" else ""
    return f"<p role=status>{text}</p>{bar}"


def curve_rows(progress: RunProgress) -> list[Row]:
    """Return the curves as rows with `step`, `loss` and `kind`."""
    return [
        {"step": step, "loss": loss, "kind": kind}
        for kind, curve in ((TRAINING, progress.losses), (HELD_OUT, progress.held_out))
        for step, loss in (thin_out(curve) if curve else ())
    ]


def samples_html(progress: RunProgress) -> str:
    """Return the newest sample answers as a table."""
    if not progress.samples:
        return ""
    cells = [[html.escape(str(sample.get(key, ""))) for key in SAMPLE] for sample in progress.samples]
    rows = "".join(f"<tr><td>{'<td>'.join(row)}</tr>" for row in cells)
    head = "<tr><th>Held-out question<th>In the data<th>The model now</tr>"
    return f'<table class="samples"><thead>{head}</thead><tbody>{rows}</tbody></table>'
