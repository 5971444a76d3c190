"""The lessons tab: the better answers that were taught, to edit, delete and download.

It does not exist on a Space. Elsewhere it is for whoever sits at the machine: every event handler checks that.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from inference.errors import LabError, visitor_message
from inference.lessons.lessons import Lesson, Lessons, to_jsonl
from inference.lessons.lessons_hub import push_lessons
from inference.validation import shorten
from ui.components.events import QUIET
from ui.training_jobs.access import check_owner, may_train

SHOWN = 200  # the newest lessons, in the table
HEADERS = ["Question", "Better answer", "Model", "Time"]


class LessonsTab:
    """The components of the tab `tab` and their events."""

    def __init__(self, lessons: Lessons, tab: gr.Tab, saved: gr.State) -> None:
        self.lessons, self.tab = lessons, tab
        with gr.Column(elem_classes="scroll"):
            self.status = gr.Markdown("")
            self.table: Any = gr.Dataframe(
                headers=HEADERS, datatype="str", interactive=False, wrap=True, show_label=False, elem_id="lessons"
            )
            with gr.Column(visible=False) as self.editor:
                self.question = gr.Textbox(label="Question", lines=1, max_lines=8)
                self.better = gr.Textbox(label="Better answer", lines=2, max_lines=8)
                self.must_say = gr.Textbox(label="Words that a right answer contains")
                self.phrasings = gr.Textbox(label="Other wordings of the question, one a line", lines=2)
                with gr.Row():
                    self.save = gr.Button("Save", size="sm", variant="primary", min_width=80)
                    self.delete = gr.Button("Delete", size="sm", variant="stop", min_width=80)
            with gr.Row():
                self.download = gr.Button("Download lessons.jsonl", size="sm", min_width=120)
                self.repository = gr.Textbox(
                    show_label=False, container=False, placeholder="your-name/lessons", max_length=200, min_width=120,
                    label="Private data set on the Hub",
                )  # fmt: skip
                self.push = gr.Button("Push to a private data set", size="sm", min_width=120)
        self.outgoing = gr.JSON(visible=False)
        self.ids, self.chosen = gr.State([]), gr.State("")
        listed = [self.table, self.ids, self.status, self.editor]
        fields = [self.question, self.better, self.must_say, self.phrasings]
        gr.on([tab.select, saved.change], self.show, None, listed, **QUIET)
        self.table.select(self.choose, self.ids, [self.editor, self.chosen, *fields], **QUIET)
        self.save.click(self.edit, [self.chosen, *fields], listed, **QUIET)
        self.delete.click(self.remove, self.chosen, listed, **QUIET)
        self.push.click(self.push_all, self.repository, self.status, **QUIET)
        written = self.download.click(self.export, None, [self.outgoing, self.status], **QUIET)
        written.then(None, self.outgoing, None, js="(file) => {if (file) conversations.download(file)}", **QUIET)

    def connect_page(self, page: gr.Blocks) -> None:
        """Hide the tab from those who may not teach, when the page is opened."""
        page.load(self.show_for_owner, None, self.tab, **QUIET)

    def show_for_owner(self, request: gr.Request) -> gr.Tab:
        """Show the tab if the visitor may teach."""
        return gr.Tab(visible=may_train(request, None))

    def show(self, request: gr.Request) -> tuple[Any, ...]:
        """Show the lessons, and close the editor."""
        check_owner(request, None)
        return self.listed()

    def listed(self, notice: str = "") -> tuple[Any, ...]:
        """Return the table's rows, newest first, their ids, a sentence, and the closed editor."""
        try:
            found = self.lessons.list()[::-1]
        except LabError as error:
            return [], [], visitor_message(error), gr.Column(visible=False)
        count = f"{len(found):,} {'lesson' if len(found) == 1 else 'lessons'}"
        more = f", of which the newest {SHOWN} are shown" if len(found) > SHOWN else ""
        status = (
            f"{count}{more}. Select one to edit it. *Train* teaches them to a model."
            if found
            else "No lessons yet: choose *Teach* below an answer."
        )
        rows = [row_of(lesson) for lesson in found[:SHOWN]]
        return rows, [lesson.id for lesson in found[:SHOWN]], notice or status, gr.Column(visible=False)

    def choose(self, data: gr.SelectData, ids: list[str], request: gr.Request) -> tuple[Any, ...]:
        """Open the editor for the selected row."""
        check_owner(request, None)
        index = data.index[0] if isinstance(data.index, (list, tuple)) else data.index
        lesson = next((each for each in self.lessons.list() if each.id == ids[index]), None) if ids else None
        if lesson is None:
            return gr.Column(visible=False), "", *[gr.skip()] * 4
        texts = lesson.question, lesson.better, lesson.must_say, "\n".join(lesson.phrasings)
        return gr.Column(visible=True), lesson.id, *texts

    def edit(
        self, lesson_id: str, question: str, better: str, must_say: str, phrasings: str, request: gr.Request
    ) -> tuple[Any, ...]:
        """Store the edited lesson; or say what is wrong and leave the editor open."""
        check_owner(request, None)
        try:
            self.lessons.edit(
                lesson_id, question=question, better=better, must_say=must_say, phrasings=phrasings.splitlines()
            )
        except LabError as error:
            return gr.skip(), gr.skip(), visitor_message(error), gr.skip()
        return self.listed()

    def remove(self, lesson_id: str, request: gr.Request) -> tuple[Any, ...]:
        """Delete the lesson."""
        check_owner(request, None)
        try:
            self.lessons.delete(lesson_id)
        except LabError as error:
            return gr.skip(), gr.skip(), visitor_message(error), gr.skip()
        return self.listed("The lesson is deleted.")

    def export(self, request: gr.Request) -> tuple[Any, Any]:
        """Return all lessons as a file that the browser writes."""
        check_owner(request, None)
        try:
            text = to_jsonl(self.lessons.list())
        except LabError as error:
            return None, visitor_message(error)
        return {"name": "lessons.jsonl", "text": text, "type": "application/jsonl"}, gr.skip()

    def push_all(self, repository: str, request: gr.Request) -> str:
        """Push all lessons to a private data set, with this machine's token. Returns a sentence."""
        check_owner(request, None)
        try:
            return f"The lessons are in {push_lessons(self.lessons, repository.strip())}."
        except LabError as error:
            return visitor_message(error)


def row_of(lesson: Lesson) -> list[str]:
    """Return a lesson as a row of the table."""
    time = lesson.time[:16].replace("T", " ")
    return [shorten(lesson.question, 200), shorten(lesson.better, 200), shorten(lesson.model), time]
