"""The models tab: a card for each model that opens to its loss curve, evaluation and recipe; and a comparison of two.

A box examines any model file. The cards are rendered when the tab is selected, so that they do not delay the start of
the page.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr

from inference.catalog import Entry
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.run_records import RunRecord
from inference.visitors.limits import VisitorLimits
from ui.components.events import QUIET
from ui.components.model_details import ModelDetails
from ui.components.model_picker import ModelPicker, OwnModels
from ui.doctor.doctor_box import DoctorBox
from ui.views.model_card import details_html
from ui.views.model_diff_table import model_diff_table
from ui.views.text import message_html


class ModelsTab:
    """The components of the tab `tab` of `tabs`. The button on a card selects its model in `picker`."""

    def __init__(self, lab: Lab, picker: ModelPicker, tabs: gr.Tabs, tab: gr.Tab, limits: VisitorLimits) -> None:
        self.lab, self.picker, self.tabs, self.details = lab, picker, tabs, ModelDetails(lab)
        ids, self.visits = gr.State([]), gr.State(0)  # of this tab
        with gr.Column(elem_classes="scroll"):
            gr.Markdown("Open a card to see how a model was made. Select two models to compare them.")
            render: Any = gr.render(
                inputs=[ids, picker.own], triggers=[ids.change], concurrency_limit=8, show_progress="hidden"
            )
            render(self.render_cards)
            DoctorBox(lab, limits)
        tab.select(self.list_models, [self.visits, picker.own], [ids, self.visits], **QUIET)

    def list_models(self, visits: int, own: OwnModels) -> tuple[list[str], int]:
        """Return the ids of all models, the visitor's own among them, and the next number of visits to this tab."""
        return list(dict.fromkeys([*(entry.id for entry in self.lab.catalog.entries), *own])), visits + 1

    def render_cards(self, ids: list[str], own: OwnModels) -> None:
        """Render the cards. Called only if the list of models has changed, so that selected and open cards stay.

        The next visit to the tab updates the facts on the cards.
        """
        with gr.Row(elem_id="models"):
            entries = [self.picker.entry(model_id, own) for model_id in ids if self.picker.is_known(model_id, own)]
            cards = [self.render_card(entry) for entry in entries]
        comparison = gr.HTML("", visible=False, elem_id="model-differences")
        rendered = gr.State([entry.id for entry in entries])
        facts, boxes = [card[0] for card in cards], [card[1] for card in cards]
        # Not `tab.select`: an event that is attached here replaces those outside on the same component.
        self.visits.change(self.update_facts, [rendered, self.picker.own], facts, **QUIET)
        # If two boxes are ticked quickly, the result of the second must come last.
        options = {**QUIET, "trigger_mode": "always_last"}
        gr.on([box.input for box in boxes], self.compare, [self.picker.own, rendered, *boxes], comparison, **options)

    def render_card(self, entry: Entry) -> tuple[gr.HTML, gr.Checkbox]:
        """Render one card. Returns its facts and its checkbox."""
        with gr.Column(elem_classes="model", min_width=0):
            facts = gr.HTML(self.details.facts_html(entry))
            with gr.Row(elem_classes="choices"):
                selected = gr.Checkbox(False, label="Compare", container=False, min_width=90)
                ask = gr.Button("Ask this model", size="sm", min_width=70)
            with gr.Accordion("Loss, evaluation, recipe", open=False) as accordion:
                content = gr.HTML("")
        model = gr.State(entry.id)
        accordion.expand(self.open_card, [model, self.picker.own], [facts, content], **QUIET)
        ask.click(self.select_in_chat, [model, self.picker.own], [self.tabs, self.picker.dropdown], **QUIET)
        return facts, selected

    def update_facts(self, ids: list[str], own: OwnModels) -> Any:
        """Return the facts of all cards as they are now. A model that has just left the catalog keeps its facts."""
        facts = [
            self.details.facts_html(self.picker.entry(model_id, own))
            if self.picker.is_known(model_id, own)
            else gr.skip()
            for model_id in ids
        ]
        return facts if len(facts) > 1 else facts[0]

    def open_card(self, model_id: str, own: OwnModels) -> Iterator[tuple[Any, str]]:
        """Show the content of a card. Reads the run record from the Hub if the model is there."""
        try:
            entry = self.picker.entry(model_id, own)
            if entry.folder is None and entry.repo:
                yield gr.skip(), f"<p>Reading from {html.escape(entry.repo)}…</p>"
            run_record = self.details.run_record(entry)
            yield self.details.facts_html(entry), details_html(run_record)
        except LabError as error:
            yield gr.skip(), problem_html(error)

    def compare(self, own: OwnModels, ids: list[str], *ticked: bool) -> Iterator[gr.HTML]:
        """Show what differs between two selected models, or how many are selected."""
        selected = [model_id for model_id, tick in zip(ids, ticked, strict=True) if tick]
        if not selected:
            yield gr.HTML("", visible=False)
            return
        if len(selected) == 1:
            yield status_html("One model is selected: select another one to compare them.")
            return
        if len(selected) > 2:
            yield status_html(f"{len(selected)} models are selected: keep two to compare them.")
            return
        try:
            pair = [self.picker.entry(model_id, own) for model_id in selected]
        except LabError as error:
            yield status_html(visitor_message(error))
            return
        if any(entry.folder is None for entry in pair):
            yield status_html("Reading the run records…")
        run_records, problems = [], []
        for entry in pair:
            try:
                run_records.append(self.details.run_record(entry))
            except LabError as error:
                run_records.append(RunRecord())
                problems.append(problem_html(error))
        yield gr.HTML(model_diff_table(pair, run_records, problems, self.details.run_records), visible=True)

    def select_in_chat(self, model_id: str, own: OwnModels) -> tuple[gr.Tabs, gr.Dropdown]:
        """Open the chat tab with this model."""
        return gr.Tabs(selected="chat"), gr.Dropdown(self.picker.choices(own), value=model_id)


def status_html(text: str) -> gr.HTML:
    """Return a sentence in the place of the comparison."""
    return gr.HTML(f"<p role=status>{html.escape(text)}</p>", visible=True)


def problem_html(error: LabError) -> str:
    """Return an error as HTML."""
    return f"<p role=status>{message_html(visitor_message(error))}</p>"
