"""The models tab: a card for each model that opens to its curve, evaluation and recipe; two ticked, their differences.

The cards are drawn when the tab is selected: the page's start waits for none of it. What is in a run record is
`inference.run_records`' matter, how it looks `run record`'s and `difference_table`'s.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import gradio as gr

from inference.catalog import Entry
from inference.errors import LabError
from inference.hub import artifacts
from inference.lab import Lab
from inference.run_records import RunRecord, RunRecords
from ui.tabs.chat import ChatTab, choices
from ui.views.model_card import details, facts
from ui.views.model_diff_table import difference_table

QUIET = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}


class ModelsTab:
    """The components of the tab `tab` of `tabs`. A card's “Ask it” chooses the model in `chat`."""

    def __init__(self, lab: Lab, chat: ChatTab, tabs: gr.Tabs, tab: gr.Tab) -> None:
        self.lab, self.chat, self.tabs, self.run_records = lab, chat, tabs, RunRecords()
        gr.Markdown("Open a card to see how the model was made; tick two for their differences.")
        ids, self.looks = gr.State([]), gr.State(0)
        drawn = {"triggers": [ids.change], "concurrency_limit": 8, "show_progress": "hidden"}
        gr.render(inputs=[ids, chat.own], **drawn)(self.draw)
        tab.select(self.look, [self.looks, chat.own], [ids, self.looks], **QUIET)

    def look(self, looks: int, own: dict[str, Entry]) -> tuple[list[str], int]:
        """Which models there are, the visitor's own among them, and that the visitor looks once more."""
        return list(dict.fromkeys([*(entry.id for entry in self.lab.catalog.entries), *own])), looks + 1

    def draw(self, ids: list[str], own: dict[str, Entry]) -> None:
        """The cards of these models: drawn anew only where there are other ones, so that what a visitor ticked and
        opened stays. A later look at the tab brings what they show up to date."""
        with gr.Row(elem_id="models"):
            entries = [self.chat.entry(model_id, own) for model_id in ids if self.is_known(model_id, own)]
            cards = [self.draw_card(entry) for entry in entries]
        differences = gr.HTML("", visible=False, elem_id="model-differences")
        known = gr.State([entry.id for entry in entries])
        shown, ticks = [card[0] for card in cards], [card[1] for card in cards]
        # Not `tab.select`: an event that is attached here takes the place of those outside on the same component.
        self.looks.change(self.redraw, [known, self.chat.own], shown, **QUIET)
        # Two ticks in a row: what the second asks for must not be shown before what the first did.
        last = {**QUIET, "trigger_mode": "always_last"}
        gr.on([tick.input for tick in ticks], self.compare, [self.chat.own, known, *ticks], differences, **last)

    def draw_card(self, entry: Entry) -> tuple[gr.HTML, gr.Checkbox]:
        """One card; returns its facts and its tick."""
        with gr.Column(elem_classes="model", min_width=0):
            shown = gr.HTML(self.facts(entry))
            with gr.Row(elem_classes="choices"):
                tick = gr.Checkbox(False, label="Compare", container=False, min_width=90)
                ask = gr.Button("Ask it", size="sm", min_width=70)
            with gr.Accordion("Loss, evaluation, recipe", open=False) as opened:
                inside = gr.HTML("")
        model = gr.State(entry.id)
        opened.expand(self.open, [model, self.chat.own], [shown, inside], **QUIET)
        ask.click(self.ask, [model, self.chat.own], [self.tabs, self.chat.model], **QUIET)
        return shown, tick

    def is_known(self, model_id: str, own: dict[str, Entry]) -> bool:
        """Whether it is in the catalog still, or the visitor's own."""
        return model_id in self.lab.catalog or model_id in own

    def redraw(self, ids: list[str], own: dict[str, Entry]) -> list[object]:
        """The facts as things stand now; those of a model that has just left the catalog stay until the next look."""
        texts = [
            self.facts(self.chat.entry(model_id, own)) if self.is_known(model_id, own) else gr.skip()
            for model_id in ids
        ]
        return texts if len(texts) > 1 else texts[0]

    def facts(self, entry: Entry) -> str:
        """What its card shows, without asking the network."""
        run_record, problem = None, ""
        try:
            run_record = self.run_records.here(entry)
        except LabError as error:
            problem = str(error)
        names = {other.id: other.name for other in self.lab.catalog.entries}
        base = names.get(entry.base, entry.base) if entry.base else ""
        return facts(entry, run_record, base, self.lab.state(entry).text, self.size_of(entry), problem)

    def size_of(self, entry: Entry) -> int | None:
        """Bytes of its own weights on this disk, without its base's."""
        place = artifacts.on_disk(entry, self.lab.engines.form_for(entry))
        files = [place] if place and place.is_file() else place.glob("*.safetensors") if place else []
        return sum(path.stat().st_size for path in files) or None

    def open(self, model_id: str, own: dict[str, Entry]) -> Iterator[tuple]:
        """What the card opens to; from the Hub where it lies there."""
        try:
            entry = self.chat.entry(model_id, own)
            if entry.folder is None and entry.repo:
                yield gr.skip(), f"<p>Asking {html.escape(entry.repo)}…</p>"
            run_record = self.read(entry)
            yield self.facts(entry), details(run_record)
        except LabError as error:
            yield gr.skip(), sentence(error)

    def read(self, entry: Entry) -> RunRecord:
        """Its run record. Raises LabError where there is none, or the model itself isn't there."""
        if entry.folder is None and entry.repo is None:
            raise LabError(
                self.lab.state(entry).explanation or f"{entry.name} is served elsewhere, without a run record."
            )
        return self.run_records.read(entry)

    def compare(self, own: dict[str, Entry], ids: list[str], *ticked: bool) -> Iterator[gr.HTML]:
        """The differences of two; how many are still to be ticked, of one, and to be unticked, of more."""
        chosen = [model_id for model_id, tick in zip(ids, ticked, strict=True) if tick]
        if len(chosen) != 2:
            one = "One is ticked: tick another for their differences."
            yield told(
                one if len(chosen) == 1 else f"{len(chosen)} are ticked: leave two for their differences.", chosen
            )
            return
        try:
            pair = [self.chat.entry(model_id, own) for model_id in chosen]
        except LabError as error:
            yield told(str(error), chosen)
            return
        if any(entry.folder is None for entry in pair):
            yield told("Reading their run records…", chosen)
        found, problems = [], []
        for entry in pair:
            try:
                found.append(self.read(entry))
            except LabError as error:
                found.append(RunRecord())
                problems.append(sentence(error))
        yield gr.HTML(difference_table(pair, found, problems, self.run_records), visible=True)

    def ask(self, model_id: str, own: dict[str, Entry]) -> tuple[gr.Tabs, gr.Dropdown]:
        """To the chat, with that model."""
        return gr.Tabs(selected="chat"), gr.Dropdown(choices(self.lab, own.values()), value=model_id)


def told(text: str, about: list[str]) -> gr.HTML:
    """A sentence in the place of the differences, which is there only where something is ticked."""
    return gr.HTML(f"<p role=status>{html.escape(text)}</p>" if about else "", visible=bool(about))


def sentence(error: LabError) -> str:
    """An error as HTML, with its commands as code."""
    return "<p role=status>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(error))) + "</p>"
