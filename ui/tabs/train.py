"""The train tab: choose base and data, look at the rows, start, and watch the jobs.

On the own machine it is there for whoever sits at it, on a Space for its owner alone. Every event handler checks that.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from inference.errors import LabError
from inference.lab import Lab
from inference.settings import PROJECT, REPOSITORY_NAME, cache_folder
from ui.components.events import QUIET
from ui.components.model_picker import ModelPicker
from ui.tabs.trainings import REFRESH_SECONDS, Trainings
from ui.training_jobs.access import INSTALL, check_owner, is_installed, may_train, on_space
from ui.training_jobs.job import check_name
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.recipes import GOALS, LESSONS, THOROUGHNESS, Wish, check_recipe, draft, keep_data, preview

EMOJI, FILE, HUB, TAUGHT = "Emoji (built in)", "A file", "A data set of the Hub", "Lessons"
AUTOMATIC = "Chosen for the data"
# Each command takes a core and some memory of its own: one at a time.
SLOW: dict[str, Any] = {**QUIET, "show_progress": "minimal", "concurrency_limit": 1, "concurrency_id": "training"}
Profile = gr.OAuthProfile | None


class TrainTab:
    """The components of the tab `tab`, which is hidden from everybody who may not train."""

    def __init__(self, lab: Lab, picker: ModelPicker, tab: gr.Tab, jobs: Jobs | None = None) -> None:
        self.lab, self.tab = lab, tab
        self.jobs = jobs or Jobs(cache_folder() / "training")
        with gr.Column(elem_classes="scroll"):
            self.timer = gr.Timer(REFRESH_SECONDS, active=False)
            if not is_installed():
                gr.Markdown(INSTALL)
                return
            with gr.Row():
                with gr.Column(min_width=300):
                    self.add_form()
                with gr.Column(min_width=300):
                    self.trainings = Trainings(lab, picker, self.jobs, self.timer)
        self.connect()

    def connect_page(self, page: gr.Blocks) -> None:
        """Show the tab to those who may train, when the page is opened."""
        page.load(self.show_for_owner, None, [self.tab, self.timer], **QUIET)

    def add_form(self) -> None:
        """Add what a new model is made from."""
        gr.Markdown("## New model")
        bases = self.bases()
        self.name = gr.Textbox("my-model", label="Name", max_length=60)
        self.base = gr.Dropdown(
            bases, value=bases[0][1] if bases else None, label="Base", allow_custom_value=True,
            info="A model of the list, or a repository of the Hub with safetensors.",
        )  # fmt: skip
        lessons = [] if on_space() else [TAUGHT]  # a Space has none
        self.kind = gr.Radio([EMOJI, FILE, HUB, *lessons], value=EMOJI, label="Data")
        self.file = gr.File(
            label="Conversations, questions with answers, pairs or text", visible=False, elem_id="training-file"
        )
        self.dataset = gr.Textbox(label="Data set", placeholder="user/name", max_length=200, visible=False)
        self.goal = gr.Dropdown([AUTOMATIC, *GOALS], value=AUTOMATIC, label="What to learn")
        self.dial = gr.Radio(
            list(THOROUGHNESS), value="normal", label="How thorough",
            info="How often the data is read. The learning rate falls to zero over that time.",
        )  # fmt: skip
        with gr.Row():
            self.look = gr.Button("Look at the data", min_width=100)
            self.start = gr.Button("Start", variant="primary", min_width=100)
        self.summary = gr.Markdown("", elem_classes="notice", elem_id="training-summary")
        with gr.Accordion("Recipe", open=False):
            self.recipe = gr.Code("", language="yaml", label="Every field can be changed", max_lines=24)
        with gr.Accordion("Rows, and what is learnt of them", open=False):
            self.rows = gr.HTML("")
        self.drafted = gr.State(None)  # the wish that the recipe was drafted for

    def bases(self) -> list[tuple[str, str]]:
        """Return the bases that can be trained: names, and what a recipe calls them."""
        found = []
        for entry in self.lab.catalog.bases:
            if entry.weights:
                found.append((entry.name, entry.weights))
            elif entry.folder and (entry.folder / "config.json").is_file():
                folder = entry.folder.resolve()
                inside = folder.is_relative_to(PROJECT)
                found.append((entry.name, folder.relative_to(PROJECT).as_posix() if inside else str(folder)))
        return sorted(found, key=lambda base: "/" in base[1] and not (PROJECT / base[1]).is_dir())

    def connect(self) -> None:
        """Connect the form's events."""
        self.kind.change(self.show_kind, self.kind, [self.file, self.dataset, self.base, self.goal], **QUIET)
        form = [self.name, self.base, self.kind, self.file, self.dataset, self.goal, self.dial]
        drafted = [self.recipe, self.summary, self.drafted]
        self.look.click(self.make_draft, [*form, self.recipe, self.drafted], drafted, **SLOW).success(
            self.show_rows, self.recipe, self.rows, **SLOW
        )
        started = [self.summary, self.trainings.selected]
        self.start.click(self.make_draft, [*form, self.recipe, self.drafted], drafted, **SLOW).success(
            self.start_job, [self.name, self.file, self.recipe, self.drafted], started, **QUIET
        ).success(self.trainings.show, self.trainings.inputs, self.trainings.outputs, **QUIET)

    def show_for_owner(self, request: gr.Request, profile: Profile) -> tuple[gr.Tab, gr.Timer]:
        """Show the tab, and watch the jobs, if the visitor may train."""
        allowed = may_train(request, profile)
        return gr.Tab(visible=allowed), gr.Timer(active=allowed and is_installed())

    def show_kind(self, kind: str, request: gr.Request, profile: Profile) -> tuple[Any, ...]:
        """Show the boxes for the kind of data. Lessons are taught to a model, other data to a base."""
        check_owner(request, profile)
        models = [(entry.name, entry.id) for entry in self.lab.catalog.entries if entry.folder or entry.weights]
        choices = models if kind == TAUGHT else self.bases()
        label = "Model to teach" if kind == TAUGHT else "Base"
        base = gr.Dropdown(choices, value=choices[0][1] if choices else None, label=label)
        return gr.File(visible=kind == FILE), gr.Textbox(visible=kind == HUB), base, gr.Dropdown(visible=kind != TAUGHT)

    def make_draft(
        self, name: str, base: str, kind: str, file: str | None, dataset: str, goal: str, dial: str, recipe: str,
        drafted: Wish | None, request: gr.Request, profile: Profile,
    ) -> Iterator[tuple[Any, Any, Any]]:  # fmt: skip
        """Draft the recipe, unless the one in the box was drafted for this very wish and may have been edited."""
        check_owner(request, profile)
        if not base:
            raise LabError("The base is missing: choose one.")
        if kind == TAUGHT and base in {job.name for job in self.jobs.list()}:
            base = str(self.jobs.job_folder(base).model)
        wish = Wish(check_name(name.strip()), base, data_name(kind, file, dataset), GOALS.get(goal) and goal, dial)
        self.jobs.check_free(wish.name)  # the lessons of a training have a folder of its name
        if wish.name in self.lab.catalog:
            raise LabError(f"There is a model “{wish.name}” already: choose another name.")
        if wish == drafted and recipe.strip():
            yield gr.skip(), gr.skip(), gr.skip()
            return
        yield gr.skip(), "Reading the base and the data…", gr.skip()
        try:
            made = draft(wish)
        except LabError:
            yield gr.skip(), "", gr.skip()
            raise
        yield made.recipe, made.summary.replace("\n", "  \n"), wish

    def show_rows(self, recipe: str, request: gr.Request, profile: Profile) -> str:
        """Show the rows in a frame that runs no script. Their text is a stranger's."""
        check_owner(request, profile)
        page = html.escape(preview(recipe), quote=True)
        return f'<iframe class="preview" title="Rows" sandbox="" srcdoc="{page}"></iframe>'

    def start_job(
        self, name: str, file: str | None, recipe: str, wish: Wish, request: gr.Request, profile: Profile
    ) -> tuple[str, gr.Dropdown]:
        """Put the job into the queue."""
        check_owner(request, profile)
        name = check_name(name.strip())
        checked = check_recipe(recipe, name)
        keep_data(self.jobs.prepare(name), checked, file)
        self.jobs.add(name, wish.base if wish.data == LESSONS else "")
        return f"{name} is in the queue. You can close this page: the training continues.", self.trainings.choose(name)


def data_name(kind: str, file: str | None, dataset: str) -> str:
    """The name of the chosen data for a recipe. Raises LabError if there is none."""
    if kind in (EMOJI, TAUGHT):
        return "emoji" if kind == EMOJI else LESSONS
    if kind == FILE:
        if not file:
            raise LabError("The file is missing: choose one.")
        return str(Path(file))
    if not REPOSITORY_NAME.fullmatch(dataset.strip()):
        raise LabError("This is not the name of a data set: write it as user/name.")
    return dataset.strip()
