"""Choose a model: a list that can be searched, with "Add a model" and "Refresh" at its end."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from inference.catalog import Entry
from inference.errors import LabError, visitor_message
from inference.lab import REFRESH, Lab
from ui.components.events import QUIET
from ui.components.model_choices import GROUP_START, Choices, model_choices
from ui.views.selected_model import selected_model_html

OwnModels = dict[str, Entry]  # what a visitor added or selected, by model id

ADD, REFRESH_NOW = "+add", "+refresh"  # at the end of the list; no id of a model starts with "+"


class ModelPicker:
    """The components and their events. One for the app; a visitor's state is in `gr.State`.

    Attributes:
        dropdown: the list. Its value is a model's id, or for a moment `ADD` or `REFRESH_NOW`.
        current: the id of the model that was selected last.
        own: the models that the visitor added or selected.
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        first = lab.catalog.entries[0]
        self.first = first.id
        with gr.Row(elem_classes="top-bar", elem_id="model-bar"):
            self.dropdown = gr.Dropdown(
                self.choices({}), value=first.id, label="Model", show_label=False, container=False, scale=1,
                min_width=120, elem_id="model",
            )  # fmt: skip
        self.list_age = gr.HTML(visible=False, elem_classes="caption", elem_id="listing")
        with gr.Column(visible=False, elem_classes="popover", elem_id="add-model") as self.form:
            self.repository = gr.Textbox(
                label="Add a model from the Hub", max_length=300, placeholder="user/repo, or its address",
                info="A GGUF model, or a LoRA adapter on one of the base models. It is listed for your visit only.",
            )  # fmt: skip
            self.add_notice = gr.Markdown("", elem_classes="notice", elem_id="adding")
            with gr.Row():
                self.add_button = gr.Button("Add", size="sm", variant="primary", min_width=80)
                self.close_button = gr.Button("Close", size="sm", min_width=80)
        # Selected models are in here, too: they stay in the list if a refresh no longer finds them.
        self.own = gr.State({})
        self.current = gr.State(first.id)
        self.shown_choices = gr.State(self.choices({}))  # an open list is redrawn only if they change

    def choices(self, own: OwnModels) -> Choices:
        """Return the choices of the list with the visitor's `own` models."""
        add = [(f"{GROUP_START}+ Add a model from the Hub…", ADD)] if self.lab.models.may_add else []
        refresh = (f"{'' if add else GROUP_START}⟳ Refresh this list", REFRESH_NOW)
        return [*model_choices(self.lab, own.values()), *add, refresh]

    def connect(self, notice: gr.Markdown) -> None:
        """Connect the list's last two entries and the form. Problems are shown in `notice`."""
        self.update = {
            "fn": self.show_models, "inputs": [self.current, self.own, self.shown_choices],
            "outputs": [self.dropdown, self.list_age, notice, self.shown_choices], **QUIET,
        }  # fmt: skip
        self.dropdown.input(
            self.run_entry, [self.dropdown, self.current, self.own],
            [self.dropdown, self.form, notice, self.list_age], **QUIET,
        )  # fmt: skip
        added = [self.dropdown, self.own, self.repository, self.add_notice, self.form]
        gr.on(
            [self.repository.submit, self.add_button.click], self.add_repository, [self.repository, self.own], added,
            **QUIET,
        )  # fmt: skip
        self.close_button.click(lambda: gr.Column(visible=False), None, self.form, **QUIET)

    def keep_current(self, page: gr.Blocks) -> None:
        """Show the models when a visitor opens the page, and refresh them then and every `REFRESH` seconds."""
        refresh: dict[str, Any] = {"fn": self.refresh_if_due, "inputs": None, "outputs": None, **QUIET}
        page.load(**self.update).then(**refresh).then(**self.update)
        gr.Timer(REFRESH).tick(**refresh).then(**self.update)

    def run_entry(self, chosen: str, current: str, own: OwnModels) -> Iterator[Sequence[Any]]:
        """Run "Add a model" or "Refresh" if one of them was chosen, and select the model before it again."""
        if chosen == ADD:
            yield gr.Dropdown(value=current), gr.Column(visible=True), gr.skip(), gr.skip()
        elif chosen != REFRESH_NOW:
            yield [gr.skip()] * 4  # a generator without a step would clear its outputs
        else:
            yield gr.Dropdown(value=current), gr.skip(), "Refreshing the list of models…", gr.skip()
            problem = self.lab.refresh()
            yield gr.Dropdown(self.choices(own)), gr.skip(), problem, self.age_html()

    def age_html(self) -> gr.HTML:
        """Update the note about the list: how old it is, if the Hub is unreachable."""
        note = self.lab.list_note()
        return gr.HTML(html.escape(note), visible=bool(note))

    def entry(self, model_id: str, own: OwnModels) -> Entry:
        """Return the selected model from the catalog; if it left the catalog, as the visitor saw it."""
        return self.lab.catalog[model_id] if model_id in self.lab.catalog or model_id not in own else own[model_id]

    def is_known(self, model_id: str, own: OwnModels) -> bool:
        """Return whether a model is in the catalog or one of the visitor's own."""
        return model_id in self.lab.catalog or model_id in own

    def select_default(self, history: list[Any], question: str, chosen: str) -> Any:
        """Select the default model when a page is opened without a conversation, and without the `question` of a link.
        It changes while the app runs."""
        default, first = self.lab.models.default, self.first
        unchanged = history or question or chosen != first or default.id == first
        return gr.skip() if unchanged else gr.Dropdown(self.choices({}), value=default.id)

    def card_html(self, entry: Entry) -> str:
        """Return the facts of a model as they are now."""
        base, engine = self.lab.catalog.base_of(entry), self.lab.engines.label_for(entry)
        return selected_model_html(entry, base, self.lab.state(entry).text, engine)

    def refresh_if_due(self) -> None:
        """Refresh the list of models if the last refresh is old. Errors are not shown."""
        self.lab.refresh(at_most_every=REFRESH)

    def show_state(self, own: OwnModels, shown: Choices) -> tuple[Any, Choices]:
        """Update the list after an answer. An unchanged list is not redrawn: the visitor may be searching it."""
        choices = self.choices(own)
        return gr.skip() if choices == shown else gr.Dropdown(choices), choices

    def show_models(self, model_id: str, own: OwnModels, shown: Choices) -> Iterator[tuple[Any, ...]]:
        """Update list and notes as `show_state`; the selection stays. Says so if the selected model left the Hub."""
        known = self.is_known(model_id, own)
        entry = self.entry(model_id, own) if known else self.lab.catalog.entries[0]
        choices = self.choices(own)
        dropdown, _ = self.show_state(own, shown) if known else (gr.Dropdown(choices, value=entry.id), choices)
        list_age = self.age_html()
        yield dropdown, list_age, gr.skip(), choices
        if model_id not in self.lab.catalog and (problem := self.lab.availability.problem(entry)):
            yield gr.skip(), list_age, problem, choices

    def add_repository(self, text: str, own: OwnModels) -> Iterator[tuple[Any, ...]]:
        """Add a Hub repository to the visitor's list and select it. On an error, the text stays in its box."""
        yield *[gr.skip()] * 3, "Looking for the repository…", gr.skip()
        try:
            entry = self.lab.models.repository(text)
        except LabError as error:
            yield *[gr.skip()] * 3, visitor_message(error), gr.skip()
            return
        own = own | {entry.id: entry}
        yield gr.Dropdown(self.choices(own), value=entry.id), own, "", "", gr.Column(visible=False)
