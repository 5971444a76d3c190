"""The models tab: a card for each model that opens to its curve, evaluation and recipe; two ticked, their differences.

The cards are drawn when the tab is selected: the page's start waits for none of it. What is in a receipt is
`inference.receipts`' matter, how it looks `receipt`'s and `difference_table`'s.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import gradio as gr

from inference import places
from inference.catalog import Entry
from inference.errors import LabError
from inference.lab import Lab
from inference.receipts import Receipt, Receipts
from ui.chat import ChatTab
from ui.difference_table import difference_table
from ui.receipt import details, facts

QUIET = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}


class ModelsTab:
    """The components of the tab `tab` of `tabs`. A card's “Ask it” chooses the model in `chat`."""

    def __init__(self, lab: Lab, chat: ChatTab, tabs: gr.Tabs, tab: gr.Tab) -> None:
        self.lab, self.chat, self.tabs, self.receipts = lab, chat, tabs, Receipts()
        gr.Markdown("Open a card to see how the model was made; tick two for their differences.")
        gr.render(triggers=[tab.select], concurrency_limit=8, show_progress="hidden")(self.draw)
        self.differences = gr.HTML("", elem_id="model-differences")

    def draw(self) -> None:
        """The cards, as things stand now. What a visitor ticked and opened stays."""
        entries = list(self.lab.catalog.entries)
        with gr.Row(elem_id="models"):
            ticks = [self.draw_card(entry) for entry in entries]
        ids = gr.State([entry.id for entry in entries])
        gr.on([tick.input for tick in ticks], self.compare, [ids, *ticks], self.differences, **QUIET)

    def draw_card(self, entry: Entry) -> gr.Checkbox:
        """One card; returns its tick."""
        with gr.Column(elem_classes="model", min_width=0):
            shown = gr.HTML(self.facts(entry))
            with gr.Row(elem_classes="choices"):
                tick = gr.Checkbox(False, label="Compare", key=("tick", entry.id), container=False, min_width=90)
                ask = gr.Button("Ask it", size="sm", min_width=70)
            with gr.Accordion("Loss, evaluation, recipe", open=False) as opened:
                inside = gr.HTML("")
        model = gr.State(entry.id)
        opened.expand(self.open, model, [shown, inside], **QUIET)
        ask.click(self.ask, model, [self.tabs, self.chat.model], **QUIET)
        return tick

    def facts(self, entry: Entry) -> str:
        """What its card shows, without asking the network."""
        receipt, problem = None, ""
        try:
            receipt = self.receipts.here(entry)
        except LabError as error:
            problem = str(error)
        base = self.lab.catalog.base_of(entry)
        state, size = self.lab.state(entry).text, self.size_of(entry)
        return facts(entry, receipt, base.name if base is not entry else "", state, size, problem)

    def size_of(self, entry: Entry) -> int | None:
        """Bytes of its own weights on this disk, without its base's."""
        place = places.on_disk(entry, self.lab.form(entry))
        files = [place] if place and place.is_file() else place.glob("*.safetensors") if place else []
        return sum(path.stat().st_size for path in files) or None

    def open(self, model_id: str) -> Iterator[tuple]:
        """What the card opens to; from the Hub where it lies there."""
        try:
            entry = self.lab.entry(model_id)
            if entry.folder is None and entry.repo:
                yield gr.skip(), f"<p>Asking {html.escape(entry.repo)}…</p>"
            receipt = self.read(entry)
            yield self.facts(entry), details(receipt)
        except LabError as error:
            yield gr.skip(), sentence(error)

    def read(self, entry: Entry) -> Receipt:
        """Its receipt. Raises LabError where there is none, or the model itself isn't there."""
        if entry.folder is None and entry.repo is None:
            raise LabError(self.lab.state(entry).explanation or f"{entry.name} is served elsewhere, without a receipt.")
        return self.receipts.read(entry)

    def compare(self, ids: list[str], *ticked: bool) -> Iterator[str]:
        """The differences of two; how many are still to be ticked, of one, and to be unticked, of more."""
        chosen = [model_id for model_id, tick in zip(ids, ticked, strict=True) if tick]
        if len(chosen) != 2:
            hints = ["", "<p role=status>One is ticked: tick another for their differences.</p>"]
            more = f"<p role=status>{len(chosen)} are ticked: leave two for their differences.</p>"
            yield hints[len(chosen)] if len(chosen) < len(hints) else more
            return
        try:
            pair = [self.lab.entry(model_id) for model_id in chosen]
            if any(entry.folder is None for entry in pair):
                yield "<p role=status>Reading their receipts…</p>"
            yield difference_table(pair, [self.read(entry) for entry in pair], self.receipts)
        except LabError as error:
            yield sentence(error)

    def ask(self, model_id: str) -> tuple[gr.Tabs, gr.Dropdown]:
        """To the chat, with that model."""
        return gr.Tabs(selected="chat"), gr.Dropdown(self.chat.choices(), value=model_id)


def sentence(error: LabError) -> str:
    """An error as HTML, with its commands as code."""
    return "<p role=status>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(error))) + "</p>"
