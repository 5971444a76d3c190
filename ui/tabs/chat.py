"""The chat tab: select a model, ask by text or voice, read the streamed answer, stop, retry, undo, edit.

What a conversation is, for code that keeps it: `ChatTab.chatbot` holds the messages as one list of dicts with "role"
and "content" (see `ui.components.conversation` for the notes in them), `ChatTab.picker.current` the model's id, and
`ChatTab.settings.inputs` the settings of the next answer. To show another conversation, set the chatbot,
`picker.dropdown` and `picker.current` in one event. `ChatTab.changes` are the events after which the
messages have changed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any, cast

import gradio as gr
from gradio.events import Dependency

from inference.catalog import Entry
from inference.engines import Chunk, Figures
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.lessons.lessons import Lessons
from inference.metrics import count_rating
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import AskValues, read
from ui.components.answer_settings import AnswerSettings, answer_values
from ui.components.composer import Composer, send_or_stop
from ui.components.conversation import (
    ChatEntry,
    begun_answer,
    model_marker,
    text_of,
    to_messages,
    waiting_html,
    with_figures,
    with_problem,
    without_notes,
)
from ui.components.events import IMMEDIATE, QUIET, answering
from ui.components.model_picker import ADD, REFRESH_NOW, ModelPicker, OwnModels
from ui.components.running_answers import RunningAnswers
from ui.components.visitor import visitor_of
from ui.teaching.teach_panel import TEACH, TeachPanel
from ui.views.answer_actions import CONTINUE, READ_ALOUD, actions_below
from ui.views.context_gauge import context_gauge_html
from ui.voice.spoken_answers import SpokenAnswers
from ui.voice.voice_input import VoiceInput
from ui.voice.voice_settings import VoiceSettings

REDRAW_SECONDS = 0.08  # between two redraws of a growing answer; each takes 3 ms of this process
EXAMPLES = 3
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True}, {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]  # fmt: skip

History = list[ChatEntry]
# Conversation, question box, notice, send and stop button, gauge of the context, and turn of the spoken answers.
ChatUpdate = tuple[Any, ...]


class ChatTab:
    """The components of the tab and their events. One for the app; a visitor's state is in the page."""

    def __init__(
        self, lab: Lab, limits: VisitorLimits, settings: AnswerSettings, voice_settings: VoiceSettings,
        lessons: Lessons | None = None,
    ) -> None:  # fmt: skip
        self.lab, self.limits, self.settings = lab, limits, settings
        self.running = RunningAnswers()
        self.picker = ModelPicker(lab)
        first = lab.catalog.entries[0]
        self.chatbot = gr.Chatbot(
            label="Conversation", show_label=False, container=False, scale=1,
            height=120,  # the least; it fills the frame. Without a number, the page grows with the conversation
            autoscroll=False,  # style/conversation.css follows the end, and lets visitors scroll up
            buttons=["copy"], editable="user", group_consecutive_messages=False,
            reasoning_tags=[("<think>", "</think>")], latex_delimiters=LATEX,
            placeholder=self.picker.card_html(first), examples=examples_of(first), elem_id="chat",
        )  # fmt: skip
        gr.HTML('<button id="to-end" aria-label="Scroll to the end" hidden></button>', elem_classes="to-end-place")
        self.teach = TeachPanel(lab, limits, lessons, voice_settings) if lessons else None
        self.box = Composer("Ask anything", autofocus=True)
        self.gauge = gr.HTML("", elem_classes="caption", elem_id="context")
        self.voice = VoiceInput(lab, limits, self.box, voice_settings)
        self.spoken = SpokenAnswers(lab, self.box)
        self.answers: list[Dependency] = []  # the events that answer a question
        self.changes: list[Dependency] = []  # those that change the conversation
        self.connect()

    def connect(self) -> None:
        """Connect the components' events."""
        picker, box, voice = self.picker, self.box, self.voice
        settings = [picker.dropdown, picker.own, voice.settings.aloud, *self.settings.inputs]
        shown = [self.chatbot, box.text, box.notice, box.send, box.stop, self.gauge, self.spoken.turn]
        options = {**QUIET, **answering(self.limits)}
        asked = [self.chatbot, *settings]
        self.answers = [
            gr.on([box.text.submit, box.send.click], self.ask, [box.text, *asked], shown, **options),
            self.chatbot.example_select(self.ask_example, asked, shown, **options),
            self.chatbot.retry(self.retry, asked, shown, **options),
            self.chatbot.edit(self.edit, asked, shown, **options),
            self.chatbot.option_select(self.run_action, asked, shown, **options),
        ]
        for transcribed, source in voice.connect(**QUIET):
            spoken = [voice.settings.send_at_once, source, box.text, *asked]
            self.answers.append(transcribed.then(self.ask_transcript, spoken, [*shown, box.recorder], **options))
        for event in self.answers:  # the model is in memory now
            event.then(picker.show_state, [picker.own, picker.shown_choices], [picker.dropdown, picker.shown_choices],
                       **QUIET)  # fmt: skip
        taken_back = self.chatbot.undo(self.undo, self.chatbot, [self.chatbot, box.text], **IMMEDIATE)
        self.changes = [*self.answers, taken_back]
        box.connect_stop(self.running, voice.running, self.spoken.running)
        self.spoken.connect()
        self.chatbot.like(self.rate, picker.current, None, **IMMEDIATE)
        if self.teach:
            self.teach.connect(self.chatbot, self.settings.system, picker.current)
        picker.dropdown.change(
            self.select_model, [picker.dropdown, picker.current, picker.own, self.chatbot],
            [self.chatbot, box.notice, picker.own, picker.current], **QUIET,
        )  # fmt: skip
        picker.connect(box.notice)
        picker.current.change(self.show_strength, [picker.current, picker.own], self.settings.strength, **QUIET)

    def show_strength(self, model_id: str, own: OwnModels) -> gr.Slider:
        """Update the slider of the adapter's strength for the selected model."""
        known = self.picker.is_known(model_id, own)
        return self.settings.show_strength(self.lab, self.picker.entry(model_id, own)) if known else gr.skip()

    def select_model(self, model_id: str, current: str, own: OwnModels, history: History) -> Iterator[tuple[Any, ...]]:
        """Show the card and examples of another model, a marker in the conversation, and why it is not available."""
        if model_id in (ADD, REFRESH_NOW):
            yield *[gr.skip()] * 3, current
            return
        entry = self.picker.entry(model_id, own)
        own = own | {entry.id: entry}
        # Two changes in a row leave one marker.
        if history and model_id != current and 'class="marker"' in text_of(history[-1]["content"]):
            history = history[:-1]
        if history and model_id != current:
            history = [*history, model_marker(entry.name)]
        chatbot = gr.Chatbot(cast(Any, history), placeholder=self.picker.card_html(entry), examples=examples_of(entry))
        state = self.lab.state(entry)
        if model_id == current:  # after another entry of the list, such as *Refresh*, whose notice stays
            yield chatbot, gr.skip(), own, model_id
            return
        yield chatbot, state.explanation, own, model_id
        if state.kind == "download" and (problem := self.lab.availability.problem(entry)):
            yield gr.skip(), problem, own, model_id

    def ask_example(
        self, data: gr.SelectData, request: gr.Request, history: History, *settings: Any
    ) -> Iterator[ChatUpdate]:
        """Ask one of the examples."""
        yield from self.ask(request, data.value["text"], history, *settings)

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

    def run_action(
        self, data: gr.SelectData, request: gr.Request, history: History, model_id: str, own: OwnModels, *settings: Any
    ) -> Iterator[ChatUpdate]:
        """Run an action below the last answer: read it aloud, continue it, or ask another model the same question."""
        action, _, other = str(data.value).partition(":")
        if action == READ_ALOUD:
            self.spoken.start(request, without_notes(text_of(history[-1]["content"])), complete=True)
            yield *[gr.skip()] * 6, new_turn()
            return
        if action == TEACH:  # `TeachPanel` opens
            yield (gr.skip(),) * 7
            return
        asked = max(i for i, entry in enumerate(history) if entry["role"] == "user")
        before, question = split_history(history, asked)
        if action == CONTINUE:
            begun, back = begun_answer(history), (history, gr.skip())
            yield from self.answer(request, question, history[:-1], begun, back, model_id, own, *settings)
            return
        yield from self.ask(request, question, before, other, own, *settings)

    def actions(self, asked: Entry, cut: bool = False) -> list[dict[str, str]]:
        """Return the actions below an answer of the model `asked`. One that was `cut` can be continued."""
        return actions_below(self.lab, asked, cut, teach=bool(self.teach))

    def rate(self, data: gr.LikeData, model_id: str) -> None:
        """Count that a visitor likes an answer or not, for the operator's figures."""
        known = model_id if model_id in self.lab.catalog else "added by a visitor"
        count_rating(known, "like" if data.liked is True else "dislike")

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
            yield *[gr.skip()] * 7, None
            return
        history = [*history, {"role": "user", "content": {"path": recording}}]
        if not at_once:
            # The box does not change, since the visitor may be editing the text already.
            yield history, gr.skip(), "", *[gr.skip()] * 4, None
            return
        for step in self.ask(request, question, history, *settings):
            yield *step, None

    def ask(self, request: gr.Request, question: str, history: History, *settings: Any) -> Iterator[ChatUpdate]:
        """Stream an answer. On an error before its first token, the question goes back into the box."""
        asked = [*history, {"role": "user", "content": question}]
        yield from self.answer(request, question, asked, "", (history, question), *settings)

    def answer(
        self, request: gr.Request, question: str, history: History, begun: str, back: tuple[History, Any],
        model_id: str, own: OwnModels, aloud: bool, system: str, *sampling: Any,
    ) -> Iterator[ChatUpdate]:  # fmt: skip
        """Stream an answer below `history`, which ends with the question, after the text `begun` of it. On an error,
        the text that came is kept; if none came, conversation and box become what `back` says."""
        stop, reading = self.running.start(request), self.spoken.start(request)
        turn = new_turn() if aloud else gr.skip()
        answer, started, redrawn_at = "", time.perf_counter(), 0.0
        try:
            values = read(AskValues, question=question, model=model_id, **answer_values(system, *sampling))
            entry = self.picker.entry(values.model, own)
            messages = to_messages([*history, {"role": "assistant", "content": begun}], values.system_prompt)
            chosen = self.lab.applicable(entry, values.sampling)
            for chunk in self.admitted(request, self.lab.ask(entry, messages, chosen, stop.is_set)):
                answer += chunk.text
                now = time.perf_counter()
                reading.text, reading.complete = answer, bool(chunk.figures)
                reply: ChatEntry = {"role": "assistant"}
                if chunk.figures:
                    shown = with_figures(begun + answer, entry.name, chunk.figures)
                    reply["options"] = self.actions(entry, bool(answer) and chunk.figures.finish_reason != "stop")
                elif now - redrawn_at < REDRAW_SECONDS:
                    continue
                else:
                    shown = begun + answer or waiting_html(chunk.waiting or "thinking", now - started)
                around = around_answer(not redrawn_at, chunk.figures, reading.speaking)
                redrawn_at = now
                yield [*history, reply | {"content": shown}], *around, turn
                turn = gr.skip()
        except LabError as error:
            reading.stop.set()
            problem = visitor_message(error)
            if answer:
                kept = with_problem(begun + answer, problem)
                reply = {"role": "assistant", "content": kept, "options": self.actions(entry, cut=True)}
                around = gr.skip(), "", *send_or_stop(running=False), gr.skip()
                yield [*history, reply], *around, gr.skip()
            else:
                yield *back, problem, *send_or_stop(running=False), gr.skip(), gr.skip()
        finally:
            reading.complete = True  # also if the event is cancelled

    def admitted(self, request: gr.Request, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks, and count the answer among those of the visitor meanwhile."""
        with self.limits.admit(visitor_of(request)):
            yield from chunks


def around_answer(first: bool, figures: Figures | None, speaking: bool) -> tuple[Any, ...]:
    """Return question box, notice, buttons and gauge beside a growing answer. Only the `first` update and the last one,
    which has `figures`, change them: each change takes time, and the visitor may be typing the next question."""
    text = "" if first else gr.skip()
    buttons = send_or_stop(running=not figures or speaking) if first or figures else (gr.skip(), gr.skip())
    gauge = context_gauge_html(figures) if figures else gr.skip()
    return text, text, *buttons, gauge


def new_turn() -> str:
    """Return a text that differs from all before, whose change starts the reading of an answer."""
    return uuid.uuid4().hex


def split_history(history: History, index: int | tuple[int, int]) -> tuple[History, str]:
    """Return the conversation before the message at `index`, and that message's text."""
    assert isinstance(index, int)  # a pair belongs to a format of conversations that the page does not use
    return history[:index], text_of(history[index]["content"])


def examples_of(entry: Entry) -> Any:
    """Return up to three questions that suit the model, as the chatbot shows them."""
    return [{"text": text} for text in entry.examples[:EXAMPLES]]
