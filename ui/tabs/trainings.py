"""The right half of the train tab: the jobs, the curves and samples of the selected one, stop, resume and publish."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd

from inference.errors import LabError
from inference.lab import Lab
from inference.settings import REPOSITORY_NAME
from ui.components.events import QUIET
from ui.components.model_picker import ModelPicker, OwnModels
from ui.training_jobs.access import check_owner
from ui.training_jobs.job import Job, JobFolder
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.progress import RunProgress, read_progress
from ui.training_jobs.recipes import publish
from ui.views.training.gate_report import gate_html
from ui.views.training.training_status import HELD_OUT, TRAINING, curve_rows, samples_html, status_html

REFRESH_SECONDS = 2.0
PUBLISHING: dict[str, Any] = {**QUIET, "show_progress": "minimal", "concurrency_limit": 1}
Profile = gr.OAuthProfile | None


class Trainings:
    """The components. `selected` is the name of a job; `inputs` and `outputs` are those of `show`."""

    def __init__(self, lab: Lab, picker: ModelPicker, jobs: Jobs, timer: gr.Timer) -> None:
        self.lab, self.picker, self.jobs, self.timer = lab, picker, jobs, timer
        self.list_finished()
        gr.Markdown("## Trainings")
        self.selected = gr.Dropdown([], label="Training", show_label=False, elem_id="trainings")
        self.status = gr.HTML("", elem_id="training-status")
        with gr.Row():
            self.stop = gr.Button("Stop", size="sm", min_width=70, visible=False)
            self.resume = gr.Button("Resume", size="sm", min_width=70, visible=False)
            self.delete = gr.Button("Delete", size="sm", min_width=70, visible=False)
        self.plot = gr.LinePlot(
            pd.DataFrame({"step": [], "loss": [], "kind": []}), x="step", y="loss", color="kind", height=240,
            y_title="loss (nats per token)", color_map={TRAINING: "#6366f1", HELD_OUT: "#f59e0b"}, show_label=False,
            visible=False, elem_id="loss-curve",
        )  # fmt: skip
        self.samples = gr.HTML("", elem_classes="run-record")
        self.gate = gr.HTML("", elem_id="gate")
        with gr.Accordion("Publish", open=False, visible=False) as self.publishing:
            self.namespace = gr.Textbox(label="Account or organization on the Hub", max_length=100)
            with gr.Row():
                self.dry_run = gr.Button("List what would be published", size="sm", min_width=100)
                self.publish = gr.Button("Publish", size="sm", min_width=100, interactive=False)
            self.published = gr.Textbox(label="Result", lines=6, interactive=False, elem_id="published")
        self.shown = gr.State(None)  # what the last `show` has drawn
        self.checked = gr.State(None)  # the job and account of the last dry run
        self.inputs = [self.selected, self.shown, picker.own]
        self.outputs = [
            self.selected, self.status, self.plot, self.samples, self.gate, self.stop, self.resume, self.delete,
            self.publishing, self.shown, picker.dropdown,
        ]  # fmt: skip
        self.connect()

    def connect(self) -> None:
        """Connect the events."""
        show = {"fn": self.show, "inputs": self.inputs, "outputs": self.outputs, **QUIET}
        gr.on([self.timer.tick, self.selected.input], **show)
        for button, handler in ((self.stop, self.stop_job), (self.resume, self.resume_job), (self.delete, self.remove)):
            button.click(handler, self.selected, None, **QUIET).success(**show)
        self.dry_run.click(
            self.list_files, [self.selected, self.namespace], [self.published, self.publish, self.checked], **PUBLISHING
        )
        self.publish.click(
            self.publish_model, [self.selected, self.namespace, self.checked], [self.published, self.publish],
            **PUBLISHING,
        )  # fmt: skip

    def list_finished(self) -> None:
        """Put the finished models into the list of models. The newest that has passed the gate is the default."""
        finished = {
            job.name: JobFolder(self.jobs.folder / job.name) for job in self.jobs.list() if job.state == "finished"
        }
        passed = [name for name, folder in finished.items() if folder.gate().get("passed")]
        self.lab.models.show_trained({name: folder.model for name, folder in finished.items()}, *passed[:1])

    def show(
        self, name: str | None, shown: Any, own: OwnModels, request: gr.Request, profile: Profile
    ) -> tuple[Any, ...]:
        """Show the jobs and the selected one, if anything has changed. Starts the runner again if it was killed."""
        check_owner(request, profile)
        self.jobs.ensure_runner()
        jobs = self.jobs.list()
        job = next((job for job in jobs if job.name == name), jobs[0] if jobs else None)
        progress = read_progress(self.jobs.job_folder(job.name).model) if job else RunProgress()
        finished = sorted(each.name for each in jobs if each.state == "finished")
        alive = bool(job and job.process())
        now = [
            finished, [(each.name, each.state) for each in jobs], job and job.model_dump(), alive, progress.step,
            progress.steps, progress.began, len(progress.held_out), len(progress.losses),
        ]  # fmt: skip
        if now == shown:
            return (gr.skip(),) * len(self.outputs)
        models: Any = gr.skip()
        if finished != (shown or [[]])[0]:
            self.list_finished()
            models = gr.Dropdown(self.picker.choices(own), **self.new_default(finished, shown))
        choices = [(f"{each.name} · {each.state}", each.name) for each in jobs]
        return (
            gr.Dropdown(choices, value=job.name if job else None),
            *self.parts(job, progress, jobs, alive),
            now,
            models,
        )

    def choose(self, name: str | None) -> gr.Dropdown:
        """Return the list of jobs with one of them selected."""
        return gr.Dropdown([(f"{each.name} · {each.state}", each.name) for each in self.jobs.list()], value=name)

    def new_default(self, finished: list[str], shown: Any) -> dict[str, Any]:
        """Return the model to select: one that has just been taught lessons and has passed the gate."""
        new, default = set(finished) - set(shown[0] if shown else finished), self.lab.models.default.id
        return {"value": default} if default in new else {}

    def parts(self, job: Job | None, progress: RunProgress, jobs: list[Job], alive: bool) -> tuple[Any, ...]:
        """Return the updates for one job."""
        if job is None:
            hidden = [gr.Button(visible=False)] * 3
            empty = "<p>Nothing was trained yet.</p>"
            return empty, gr.LinePlot(visible=False), "", "", *hidden, gr.Accordion(visible=False)
        # The browser keeps the lines of the first drawing: it waits for both.
        rows = curve_rows(progress) if progress.losses or progress.step >= progress.steps else []
        plot = gr.LinePlot(pd.DataFrame(rows), visible=True) if rows else gr.LinePlot(visible=False)
        waits = job.state in ("queued", "running")
        gate = gate_html(self.jobs.job_folder(job.name).gate(), job.name)
        return (
            status_html(job, progress, jobs), plot, samples_html(progress), gate,
            gr.Button(visible=waits),
            gr.Button(visible=job.state in ("stopped", "failed") and not alive),
            gr.Button(visible=not waits and not alive), gr.Accordion(visible=job.state == "finished"),
        )  # fmt: skip

    def stop_job(self, name: str, request: gr.Request, profile: Profile) -> None:
        """Stop a job after a checkpoint."""
        check_owner(request, profile)
        self.jobs.stop(name)

    def resume_job(self, name: str, request: gr.Request, profile: Profile) -> None:
        """Put a job into the queue again."""
        check_owner(request, profile)
        self.jobs.resume(name)

    def remove(self, name: str, request: gr.Request, profile: Profile) -> None:
        """Delete a job and its model."""
        check_owner(request, profile)
        self.jobs.delete(name)
        self.list_finished()

    def list_files(
        self, name: str, namespace: str, request: gr.Request, profile: Profile
    ) -> tuple[str, gr.Button, tuple[str, str]]:
        """List what would be published. After that, the model can be published to the same account."""
        check_owner(request, profile)
        folder = self.jobs.job_folder(name)
        return publish(folder, check_account(namespace), dry_run=True), gr.Button(interactive=True), (name, namespace)

    def publish_model(
        self, name: str, namespace: str, checked: tuple[str, str] | None, request: gr.Request, profile: Profile
    ) -> tuple[str, gr.Button]:
        """Publish the model of which the files were listed. Raises LabError if they were not."""
        check_owner(request, profile)
        if checked is None or tuple(checked) != (name, namespace):
            raise LabError("Look at the list of what would be published first.")
        result = publish(self.jobs.job_folder(name), check_account(namespace), dry_run=False)
        return result, gr.Button(interactive=False)


def check_account(name: str) -> str:
    """An account's name. Raises LabError if it can't be one."""
    if "/" in name or not REPOSITORY_NAME.fullmatch(name) or name.startswith("-"):
        raise LabError("This is not the name of an account: write yours, such as your-name.")
    return name
