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
        self.lab, self.chat, self.tabs, self.tab, self.receipts = lab, chat, tabs, tab, Receipts()
        gr.Markdown("Open a card to see how the model was made; tick two for their differences.")
        ids = gr.State([])
        gr.render(inputs=ids, triggers=[ids.change], concurrency_limit=8, show_progress="hidden")(self.draw)
        self.differences = gr.HTML("", elem_id="model-differences")
        tab.select(lambda: [entry.id for entry in lab.catalog.entries], None, ids, **QUIET)

    def draw(self, ids: list[str]) -> None:
        """The cards of these models: drawn anew only where there are other ones, so that what a visitor ticked and
        opened stays. A later look at the tab brings what they show up to date."""
        with gr.Row(elem_id="models"):
            cards = [self.draw_card(model_id) for model_id in ids]
        known = gr.State(ids)
        shown, ticks = [card[0] for card in cards], [card[1] for card in cards]
        self.tab.select(self.redraw, known, shown, **QUIET)
        gr.on([tick.input for tick in ticks], self.compare, [known, *ticks], self.differences, **QUIET)

    def draw_card(self, model_id: str) -> tuple[gr.HTML, gr.Checkbox]:
        """One card; returns its facts and its tick."""
        with gr.Column(elem_classes="model", min_width=0):
            shown = gr.HTML(self.facts(self.lab.catalog[model_id]))
            with gr.Row(elem_classes="choices"):
                tick = gr.Checkbox(False, label="Compare", container=False, min_width=90)
                ask = gr.Button("Ask it", size="sm", min_width=70)
            with gr.Accordion("Loss, evaluation, recipe", open=False) as opened:
                inside = gr.HTML("")
        model = gr.State(model_id)
        opened.expand(self.open, model, [shown, inside], **QUIET)
        ask.click(self.ask, model, [self.tabs, self.chat.model], **QUIET)
        return shown, tick

    def redraw(self, ids: list[str]) -> list[object]:
        """The facts as things stand now; those of a model that has just left the catalog stay until the next look."""
        known = {entry.id: entry for entry in self.lab.catalog.entries}
        texts = [self.facts(known[model_id]) if model_id in known else gr.skip() for model_id in ids]
        return texts if len(texts) > 1 else texts[0]

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
