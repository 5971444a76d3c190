"""The chat tab: select a model, ask by text or voice, read the streamed answer, stop, retry, undo, edit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from inference.catalog import Entry
from inference.engines import Chunk
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import AskValues, read
from ui.components.answer_settings import AnswerSettings, answer_values
from ui.components.conversation import ChatEntry, model_marker, text_of, to_messages, waiting_html, with_figures
from ui.components.events import IMMEDIATE, QUIET, answering
from ui.components.model_picker import ModelPicker, OwnModels
from ui.components.question_box import QuestionBox
from ui.components.running_answers import RunningAnswers
from ui.components.visitor import visitor_of
from ui.components.voice_input import VoiceInput

REDRAW_SECONDS = 0.05  # between two redraws of a growing answer
EXAMPLES = 3

History = list[ChatEntry]
# Conversation, question box, notice and stop button.
ChatUpdate = tuple[Any, ...]


class ChatTab:
    """The components of the tab and their events. One for the app; a visitor's state is in the page."""

    def __init__(self, lab: Lab, limits: VisitorLimits) -> None:
        self.lab, self.limits = lab, limits
        self.running = RunningAnswers()
        self.picker = ModelPicker(lab)
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
            texts = example_questions(lab.catalog.entries[0])
            self.examples = [gr.Button(text, size="sm", visible=bool(text)) for text in texts]
        self.box = QuestionBox("Ask something", autofocus=True)
        self.voice = VoiceInput(lab, limits)
        with gr.Accordion("Settings", open=False):
            self.voice.build_settings()
            self.answer_settings = AnswerSettings()
            self.clear = gr.Button("New conversation", size="sm")
        self.connect()

    def connect(self) -> None:
        """Connect the components' events."""
        picker, box, voice = self.picker, self.box, self.voice
        settings = [picker.dropdown, picker.own, *self.answer_settings.inputs]
        shown = [self.chatbot, box.text, box.notice, box.stop]
        transcribed = voice.connect(box.text, box.notice, box.stop, **QUIET)
        options = {**QUIET, **answering(self.limits)}
        spoken = [voice.send_at_once, voice.recorder, box.text, self.chatbot, *settings]
        answered = [
            gr.on([box.text.submit, box.send.click], self.ask, [box.text, self.chatbot, *settings], shown, **options),
            *(button.click(self.ask, [button, self.chatbot, *settings], shown, **options) for button in self.examples),
            transcribed.then(self.ask_transcript, spoken, [*shown, voice.recorder], **options),
            self.chatbot.retry(self.retry, [self.chatbot, *settings], shown, **options),
            self.chatbot.edit(self.edit, [self.chatbot, *settings], shown, **options),
        ]
        state = [picker.dropdown, picker.own, picker.shown_choices]
        for event in answered:  # the model is in memory now
            event.then(picker.show_state, state, [picker.dropdown, picker.card, picker.shown_choices], **QUIET)
        self.chatbot.undo(self.undo, self.chatbot, [self.chatbot, box.text], api_visibility="private")
        box.connect_stop(self.running, voice.running)
        self.clear.click(lambda: ([], ""), None, [self.chatbot, box.notice], **IMMEDIATE)
        picker.dropdown.change(
            self.select_model, [picker.dropdown, picker.own, self.chatbot],
            [picker.card, self.chatbot, box.notice, picker.own, *self.examples], **QUIET,
        )  # fmt: skip
        picker.connect(box.notice)

    def select_model(self, model_id: str, own: OwnModels, history: History) -> Iterator[tuple[Any, ...]]:
        """Show the facts and examples of another model, a marker in the conversation, and why it is not available."""
        entry = self.picker.entry(model_id, own)
        own = own | {entry.id: entry}
        # Two changes in a row leave one marker.
        if history and 'class="marker"' in text_of(history[-1]["content"]):
            history = history[:-1]
        if history:
            history = [*history, model_marker(entry.name)]
        buttons = [gr.Button(text, visible=bool(text)) for text in example_questions(entry)]
        card, state = self.picker.card_html(entry), self.lab.state(entry)
        yield card, history, state.explanation, own, *buttons
        if state.kind == "download" and (problem := self.lab.availability.problem(entry)):
            yield card, history, problem, own, *buttons

    def retry(self, data: gr.RetryData, request: gr.Request, history: History, *settings: Any) -> Iterator[ChatUpdate]:
        """Ask the same question again."""
        before, question = split_history(history, data.index)
        yield from self.ask(request, question, before, *settings)

    def edit(self, data: gr.EditData, request: gr.Request, history: History, *settings: Any) -> Iterator[ChatUpdate]:
        """Ask the edited question instead of the old one."""
        before, _ = split_history(history, data.index)
        yield from self.ask(request, text_of(data.value), before, *settings)

    def undo(self, data: gr.UndoData, history: History) -> tuple[History, str]:
        """Remove the last question and put it back into the box."""
        return split_history(history, data.index)

    def ask_transcript(
        self,
        request: gr.Request,
        at_once: bool,
        recording: str | None,
        question: str,
        history: History,
        *settings: Any,
    ) -> Iterator[ChatUpdate]:
        """Send the transcript with its recording, or leave it in the box so that the visitor can edit it."""
        if not recording or not question.strip():
            yield *[gr.skip()] * 4, None
            return
        history = [*history, {"role": "user", "content": {"path": recording}}]
        if not at_once:
            # The box does not change, since the visitor may be editing the text already.
            yield history, gr.skip(), "", gr.skip(), None
            return
        for step in self.ask(request, question, history, *settings):
            yield *step, None

    def ask(
        self,
        request: gr.Request,
        question: str,
        history: History,
        model_id: str,
        own: OwnModels,
        system: str,
        *sampling: Any,
    ) -> Iterator[ChatUpdate]:
        """Stream an answer. On an error, the question goes back into the box and the conversation is as before."""
        stop = self.running.start(request)
        before = history
        history = [*history, {"role": "user", "content": question}]
        answer, started, redrawn_at = "", time.perf_counter(), 0.0
        try:
            values = read(AskValues, question=question, model=model_id, **answer_values(system, *sampling))
            entry, messages = self.picker.entry(values.model, own), to_messages(history, values.system_prompt)
            for chunk in self.admitted(request, self.lab.ask(entry, messages, values.sampling, stop.is_set)):
                answer += chunk.text
                now = time.perf_counter()
                if chunk.figures:
                    shown = with_figures(answer, entry.name, chunk.figures)
                elif now - redrawn_at < REDRAW_SECONDS:
                    continue
                else:
                    shown = answer or waiting_html(chunk.waiting or "thinking", now - started)
                redrawn_at = now
                stop_button = gr.Button(interactive=not chunk.figures)
                yield [*history, {"role": "assistant", "content": shown}], "", "", stop_button
        except LabError as error:
            yield before, question, visitor_message(error), gr.Button(interactive=False)

    def admitted(self, request: gr.Request, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks, and count the answer among those of the visitor meanwhile."""
        with self.limits.admit(visitor_of(request)):
            yield from chunks


def split_history(history: History, index: int | tuple[int, int]) -> tuple[History, str]:
    """Return the conversation before the message at `index`, and that message's text."""
    assert isinstance(index, int)  # a pair belongs to a format of conversations that the page does not use
    return history[:index], text_of(history[index]["content"])


def example_questions(entry: Entry) -> list[str]:
    """Return three questions that suit the model; "" if it has fewer."""
    return [*entry.examples[:EXAMPLES], *[""] * EXAMPLES][:EXAMPLES]
