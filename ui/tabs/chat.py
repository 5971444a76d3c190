"""The chat tab: pick a model, ask, read the streamed answer, stop, retry, undo, edit. No model code."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Iterator

import gradio as gr

from inference.catalog import Entry
from inference.errors import LabError
from inference.lab import REFRESH, Lab
from ui.components.answer_settings import AnswerSettings, to_sampling
from ui.components.conversation import marker, text_of, to_messages, waiting, with_figures
from ui.components.stops import Stops
from ui.components.voice import Voice

REDRAW = 0.05  # seconds between two redraws of a growing answer


def choices(lab: Lab, own: Iterable[Entry] = ()) -> list[tuple[str, str]]:
    """A dropdown of the models, the visitor's `own` among them: each name with what it costs to choose it."""
    return [(f"{entry.name} — {lab.state(entry).text}", entry.id) for entry in lab.list_models(own)]


class ChatTab:
    """The components of the tab and what they do. One per app; what belongs to a visitor lies in the page."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.stops = Stops()
        first = lab.catalog.entries[0]
        with gr.Row(equal_height=True):
            self.model = gr.Dropdown(choices(lab), value=first.id, label="Model", scale=8)
            self.refresh = gr.Button("⟳", scale=1, min_width=48, elem_id="refresh")
        self.card = gr.HTML(self.card_of(first), elem_id="card")
        self.listing = gr.HTML(visible=False, elem_id="listing")
        with gr.Accordion("Add a model from the Hub", open=False, visible=not lab.engines.remote):
            with gr.Row():
                self.repository = gr.Textbox(
                    label="Repository", info="A LoRA adapter for one of the bases, or a GGUF model; for this visit.",
                    placeholder="user/repo, or its address", max_length=300, scale=8,
                )  # fmt: skip
                self.add = gr.Button("Add", scale=1, min_width=80)
            self.adding = gr.Markdown("", elem_classes="notice", elem_id="adding")
        # The visitor's own: what they added, and what they chose, by id. What they chose stays in their dropdown
        # when a refresh no longer finds it.
        self.own = gr.State({})
        self.offered = gr.State([])  # the dropdown's choices as `show_state` last saw them
        self.chatbot = gr.Chatbot(
            label="Conversation",
            height=420,
            buttons=["copy", "copy_all"],
            editable="user",
            group_consecutive_messages=False,
            placeholder="Ask about an emoji, or anything the selected model may know.",
            elem_id="chat",
        )
        with gr.Row(elem_classes="examples"):
            self.examples = [gr.Button(text, size="sm", visible=bool(text)) for text in self.examples_of(first)]
        self.notice = gr.Markdown("", elem_classes="notice", elem_id="notice")
        with gr.Row(equal_height=True):
            self.question = gr.Textbox(
                label="Question", show_label=False, placeholder="Ask something", lines=1, max_lines=8, scale=8,
                autofocus=True, elem_id="question",
            )  # fmt: skip
            self.send = gr.Button("Send", variant="primary", scale=1, min_width=80, elem_id="send")
            self.stop = gr.Button("Stop", scale=1, min_width=80, interactive=False, elem_id="stop", elem_classes="stop")
        self.voice = Voice(lab)
        with gr.Accordion("Settings", open=False):
            self.voice.settings()
            self.answer_settings = AnswerSettings()
            self.clear = gr.Button("New conversation", size="sm")
        self.connect()

    def connect(self) -> None:
        """Wire the components."""
        settings = [self.model, self.own, *self.answer_settings.inputs]
        shown = [self.chatbot, self.question, self.notice, self.stop]
        quiet = self.quiet = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
        drawn = [self.model, self.card, self.listing, self.notice]
        self.drawn = {"fn": self.draw, "inputs": [self.model, self.own], "outputs": drawn, **quiet}
        asked = [self.question.submit, self.send.click]
        voice = self.voice
        hearing = voice.connect(self.question, self.notice, **quiet)
        spoken = [voice.send, voice.recorder, self.question, self.chatbot, *settings]
        answered = [
            gr.on(asked, self.ask, [self.question, self.chatbot, *settings], shown, **quiet),
            *(button.click(self.ask, [button, self.chatbot, *settings], shown, **quiet) for button in self.examples),
            hearing.then(self.ask_heard, spoken, [*shown, voice.recorder], **quiet),
            self.chatbot.retry(self.retry, [self.chatbot, *settings], shown, **quiet),
            self.chatbot.edit(self.edit, [self.chatbot, *settings], shown, **quiet),
        ]
        for event in answered:  # the model is in memory now
            event.then(
                self.show_state, [self.model, self.own, self.offered], [self.model, self.card, self.offered], **quiet
            )
        self.chatbot.undo(self.undo, self.chatbot, [self.chatbot, self.question], api_visibility="private")
        self.stop.click(self.stops.press, None, None, api_visibility="private", queue=False, cancels=hearing)
        self.clear.click(lambda: ([], ""), None, [self.chatbot, self.notice], api_visibility="private", queue=False)
        self.model.change(
            self.select, [self.model, self.own, self.chatbot],
            [self.card, self.chatbot, self.notice, self.own, *self.examples], **quiet,
        )  # fmt: skip
        self.refresh.click(self.look, None, self.notice, **quiet).then(**self.drawn)
        named = [self.repository.submit, self.add.click]
        added = [self.model, self.own, self.repository, self.adding]
        gr.on(named, self.add_repository, [self.repository, self.own], added, **quiet)

    def watch(self, page: gr.Blocks) -> None:
        """Draw what there is when a visitor opens the page, and look whether there is more, then and now and again."""
        look = {"fn": self.look_quietly, "inputs": None, "outputs": None, **self.quiet}
        page.load(**self.drawn).then(**look).then(**self.drawn)
        gr.Timer(REFRESH).tick(**look).then(**self.drawn)

    def entry(self, model_id: str, own: dict[str, Entry]) -> Entry:
        """What is chosen; as the catalog has it, else as the visitor saw it."""
        return self.lab.catalog[model_id] if model_id in self.lab.catalog or model_id not in own else own[model_id]

    def show_state(self, model_id: str, own: dict[str, Entry], offered: list[tuple[str, str]]) -> tuple:
        """What dropdown and card say of the models now; a dropdown that says so already may be open, and is let be."""
        now = choices(self.lab, own.values())
        return gr.skip() if now == offered else gr.Dropdown(now), self.card_of(self.entry(model_id, own)), now

    def card_of(self, entry: Entry) -> str:
        """The selection in two lines."""
        card, state = entry.card, self.lab.state(entry)
        base = self.lab.catalog.base_of(entry)
        facts = [f"on {base.name}"] if base is not entry else []
        facts += [card.lora] if card.lora else []
        for what, share in card.accuracy.items():
            if "never seen" not in what:
                before = base.card.accuracy.get(what)
                compared = f" (base {before:.0%})" if before is not None and base is not entry else ""
                facts.append(f"{what} {share:.0%}{compared}")
        facts += [state.text, self.lab.engines.label_for(entry)]
        line = html.escape(" · ".join(facts)).replace("%", "\u00a0%")
        link = f' · <a href="{html.escape(card.url)}" target="_blank">card ↗</a>' if card.url else ""
        return f'<div class="card">{html.escape(card.summary)}<br>{line}{link}</div>'

    def examples_of(self, entry: Entry) -> list[str]:
        """Three questions that suit the entry."""
        return [*entry.examples[:3], "", "", ""][:3]

    def select(self, model_id: str, own: dict[str, Entry], history: list[dict]) -> Iterator[tuple]:
        """Another model: its card, its examples, a marker in a conversation, and why it can't be had, if so."""
        entry = self.entry(model_id, own)
        own = own | {entry.id: entry}
        if history:
            # Two changes in a row leave one marker.
            if 'class="marker"' in text_of(history[-1]["content"]):
                history = history[:-1]
            history = [*history, marker(entry.name)] if history else history
        buttons = [gr.Button(text, visible=bool(text)) for text in self.examples_of(entry)]
        yield self.card_of(entry), history, self.lab.state(entry).explanation, own, *buttons
        if self.lab.state(entry).kind == "download" and (reason := self.lab.availability.problem(entry)):
            yield self.card_of(entry), history, reason, own, *buttons

    def look(self) -> str:
        """Look anew what there is; what kept the Hub or a server from telling, if anything."""
        return self.lab.refresh()

    def look_quietly(self) -> None:
        """The same where the last look is long ago, whatever comes of it."""
        self.lab.refresh(at_most_every=REFRESH)

    def draw(self, model_id: str, own: dict[str, Entry]) -> Iterator[tuple]:
        """The models and their states anew; what is chosen stays. If it is gone from the Hub, a sentence."""
        kept = model_id in self.lab.catalog or model_id in own
        entry = self.entry(model_id, own) if kept else self.lab.catalog.entries[0]
        offered = choices(self.lab, own.values())
        dropdown = gr.Dropdown(offered) if kept else gr.Dropdown(offered, value=entry.id)
        note = self.lab.models.age_note()
        listing = gr.HTML(f'<span class="figures">{html.escape(note)}</span>', visible=bool(note))
        shown = dropdown, self.card_of(entry), listing
        yield *shown, gr.skip()
        if model_id not in self.lab.catalog and (reason := self.lab.availability.problem(entry)):
            yield *shown, reason

    def add_repository(self, text: str, own: dict[str, Entry]) -> Iterator[tuple]:
        """What the visitor named joins their dropdown and is chosen; or a sentence, and the text stays."""
        yield *[gr.skip()] * 3, "looking…"
        try:
            entry = self.lab.models.repository(text)
        except LabError as error:
            yield *[gr.skip()] * 3, str(error)
            return
        own = own | {entry.id: entry}
        yield gr.Dropdown(choices(self.lab, own.values()), value=entry.id), own, "", ""

    def retry(self, data: gr.RetryData, request: gr.Request, history: list[dict], *settings: object) -> Iterator[tuple]:
        """Ask the same again."""
        yield from self.ask(request, text_of(history[data.index]["content"]), history[: data.index], *settings)

    def edit(self, data: gr.EditData, request: gr.Request, history: list[dict], *settings: object) -> Iterator[tuple]:
        """Ask the edited question in the place of the old one."""
        yield from self.ask(request, text_of(data.value), history[: data.index], *settings)

    def undo(self, data: gr.UndoData, history: list[dict]) -> tuple:
        """Take the question back into the box."""
        return history[: data.index], text_of(history[data.index]["content"])

    def ask_heard(
        self,
        request: gr.Request,
        at_once: bool,
        recording: str | None,
        question: str,
        history: list[dict],
        *settings: object,
    ) -> Iterator[tuple]:
        """Send what was heard, with the recording to play back; or leave it in the box for a look."""
        if not recording or not question.strip():
            yield *[gr.skip()] * 4, None
            return
        history = [*history, {"role": "user", "content": {"path": recording}}]
        if not at_once:
            # The text stays as it is in the box: its owner may be mending it already.
            yield history, gr.skip(), "", gr.skip(), None
            return
        for step in self.ask(request, question, history, *settings):
            yield *step, None

    def ask(
        self,
        request: gr.Request,
        question: str,
        history: list[dict],
        model_id: str,
        own: dict[str, Entry],
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int | None,
    ) -> Iterator[tuple]:
        """Stream an answer: the conversation, the question box, the notice and the stop button, again and again."""
        stop = self.stops.begin(request)
        before, entry = history, self.entry(model_id, own)
        history = [*history, {"role": "user", "content": question}]
        sampling = to_sampling(temperature, top_p, max_tokens, seed)
        answer, started, drawn = "", time.perf_counter(), 0.0
        try:
            for chunk in self.lab.ask(entry, to_messages(history, system), sampling, stop.is_set):
                answer += chunk.text
                now = time.perf_counter()
                if chunk.figures:
                    shown = with_figures(answer, entry.name, chunk.figures)
                elif now - drawn < REDRAW:
                    continue
                else:
                    shown = answer or waiting(chunk.waiting or "thinking", now - started)
                drawn = now
                running = gr.Button(interactive=not chunk.figures)
                yield [*history, {"role": "assistant", "content": shown}], "", "", running
        except LabError as error:
            # Nothing is lost: the question goes back into the box, the conversation is as before.
            yield before, question, str(error), gr.Button(interactive=False)
