"""Choose a model: the dropdown, the selected model's facts, a refresh button, and "Add a model from the Hub"."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from typing import Any

import gradio as gr

from inference.catalog import Entry
from inference.errors import LabError, visitor_message
from inference.lab import REFRESH, Lab
from ui.components.events import QUIET
from ui.views.selected_model import selected_model_html

Choices = list[tuple[str, str]]  # labels and model ids
OwnModels = dict[str, Entry]  # what a visitor added or selected, by model id


def model_choices(lab: Lab, own: Iterable[Entry] = ()) -> Choices:
    """Return the choices of a dropdown, with the visitor's `own` models: each name with its state."""
    return [(f"{entry.name} — {lab.state(entry).text}", entry.id) for entry in lab.list_models(own)]


class ModelPicker:
    """The components and their events. One for the app; a visitor's state is in `gr.State`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        first = lab.catalog.entries[0]
        with gr.Row(equal_height=True):
            self.dropdown = gr.Dropdown(model_choices(lab), value=first.id, label="Model", scale=8)
            self.refresh_button = gr.Button("⟳", scale=1, min_width=48, elem_id="refresh")
        self.card = gr.HTML(self.card_html(first), elem_id="card")
        self.list_age = gr.HTML(visible=False, elem_id="listing")
        with gr.Accordion("Add a model from the Hub", open=False, visible=lab.models.may_add):
            with gr.Row():
                self.repository = gr.Textbox(
                    label="Repository",
                    info="A GGUF model, or a LoRA adapter on one of the base models. It is listed for your visit only.",
                    placeholder="user/repo, or its address", max_length=300, scale=8,
                )  # fmt: skip
                self.add_button = gr.Button("Add", scale=1, min_width=80)
            self.add_notice = gr.Markdown("", elem_classes="notice", elem_id="adding")
        # Selected models are in here, too: they stay in the dropdown if a refresh no longer finds them.
        self.own = gr.State({})
        self.shown_choices = gr.State([])  # as `show_state` last saw them

    def connect(self, notice: gr.Markdown) -> None:
        """Connect the refresh button and the form. Problems are shown in `notice`."""
        self.update = {
            "fn": self.show_models, "inputs": [self.dropdown, self.own],
            "outputs": [self.dropdown, self.card, self.list_age, notice], **QUIET,
        }  # fmt: skip
        self.refresh_button.click(self.lab.refresh, None, notice, **QUIET).then(**self.update)
        added = [self.dropdown, self.own, self.repository, self.add_notice]
        gr.on(
            [self.repository.submit, self.add_button.click], self.add_repository, [self.repository, self.own], added,
            **QUIET,
        )  # fmt: skip

    def keep_current(self, page: gr.Blocks) -> None:
        """Show the models when a visitor opens the page, and refresh them then and every `REFRESH` seconds."""
        refresh: dict[str, Any] = {"fn": self.refresh_if_due, "inputs": None, "outputs": None, **QUIET}
        page.load(**self.update).then(**refresh).then(**self.update)
        gr.Timer(REFRESH).tick(**refresh).then(**self.update)

    def entry(self, model_id: str, own: OwnModels) -> Entry:
        """Return the selected model from the catalog; if it left the catalog, as the visitor saw it."""
        return self.lab.catalog[model_id] if model_id in self.lab.catalog or model_id not in own else own[model_id]

    def is_known(self, model_id: str, own: OwnModels) -> bool:
        """Return whether a model is in the catalog or one of the visitor's own."""
        return model_id in self.lab.catalog or model_id in own

    def card_html(self, entry: Entry) -> str:
        """Return the facts of a model as they are now."""
        base, engine = self.lab.catalog.base_of(entry), self.lab.engines.label_for(entry)
        return selected_model_html(entry, base, self.lab.state(entry).text, engine)

    def refresh_if_due(self) -> None:
        """Refresh the list of models if the last refresh is old. Errors are not shown."""
        self.lab.refresh(at_most_every=REFRESH)

    def show_state(self, model_id: str, own: OwnModels, shown: Choices) -> tuple[Any, ...]:
        """Update dropdown and facts after an answer. An unchanged dropdown is not redrawn, since it may be open."""
        choices = model_choices(self.lab, own.values())
        dropdown = gr.skip() if choices == shown else gr.Dropdown(choices)
        return dropdown, self.card_html(self.entry(model_id, own)), choices

    def show_models(self, model_id: str, own: OwnModels) -> Iterator[tuple[Any, ...]]:
        """Update dropdown, facts and notes; the selection stays. Says so if the selected model left the Hub."""
        known = self.is_known(model_id, own)
        entry = self.entry(model_id, own) if known else self.lab.catalog.entries[0]
        choices = model_choices(self.lab, own.values())
        dropdown = gr.Dropdown(choices) if known else gr.Dropdown(choices, value=entry.id)
        note = self.lab.models.age_note()
        list_age = gr.HTML(f'<span class="figures">{html.escape(note)}</span>', visible=bool(note))
        shown = dropdown, self.card_html(entry), list_age
        yield *shown, gr.skip()
        if model_id not in self.lab.catalog and (problem := self.lab.availability.problem(entry)):
            yield *shown, problem

    def add_repository(self, text: str, own: OwnModels) -> Iterator[tuple[Any, ...]]:
        """Add a Hub repository to the visitor's dropdown and select it. On an error, the text stays in its box."""
        yield *[gr.skip()] * 3, "Looking for the repository…"
        try:
            entry = self.lab.models.repository(text)
        except LabError as error:
            yield *[gr.skip()] * 3, visitor_message(error)
            return
        own = own | {entry.id: entry}
        yield gr.Dropdown(model_choices(self.lab, own.values()), value=entry.id), own, "", ""
