"""Teach: write or speak the better answer to a question, below the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from inference.engines import Message
from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.lessons.lessons import Lessons
from inference.validation import shorten
from inference.visitors.limits import VisitorLimits
from ui.components.composer import Composer
from ui.components.conversation import ChatEntry, text_of, to_messages, without_notes
from ui.components.events import IMMEDIATE, QUIET
from ui.training_jobs.access import check_owner
from ui.voice.voice_input import VoiceInput
from ui.voice.voice_settings import VoiceSettings

TEACH = "teach"  # the action below an answer
Taught = dict[str, Any]  # the question, the bad answer and the turns before, until the better answer is saved


class TeachPanel:
    """The components, created inside the open block. `saved` counts the lessons of this visit."""

    def __init__(self, lab: Lab, limits: VisitorLimits, lessons: Lessons, voice_settings: VoiceSettings) -> None:
        self.lessons = lessons
        with gr.Column(visible=False, elem_classes="popover", elem_id="teach") as self.panel:
            self.title = gr.Markdown("")
            self.box = Composer("The better answer", prefix="teach-")
            with gr.Accordion("More", open=False):
                self.must_say = gr.Textbox(
                    "", label="Words that a right answer contains", info="Empty: the whole better answer."
                )
                self.phrasings = gr.Textbox(
                    "", label="Other wordings of the question", lines=2,
                    info="One a line. They are not taught: they test whether the lesson was understood.",
                )  # fmt: skip
            self.cancel = gr.Button("Cancel", size="sm", min_width=80)
        self.taught, self.saved = gr.State({}), gr.State(0)
        self.voice = VoiceInput(lab, limits, self.box, voice_settings)

    def connect(self, chatbot: gr.Chatbot, system: gr.Textbox, model: gr.State) -> None:
        """Open the panel from `chatbot`, by the action below its last answer or by a dislike of any answer."""
        opened = [self.panel, self.title, self.box.text, self.must_say, self.phrasings, self.box.notice, self.taught]
        chatbot.option_select(self.open_for_last, [chatbot, system], opened, **IMMEDIATE)
        chatbot.like(self.open_for_disliked, [chatbot, system], opened, **IMMEDIATE)
        self.cancel.click(lambda: gr.Column(visible=False), None, self.panel, **IMMEDIATE)
        for transcribed, _ in self.voice.connect(**QUIET):
            transcribed.then(lambda: None, None, self.box.recorder, **QUIET)  # so that one can speak again
        self.box.connect_stop(self.voice.running)
        gr.on(
            [self.box.text.submit, self.box.send.click], self.save,
            [self.taught, self.box.text, self.must_say, self.phrasings, model, self.saved],
            [self.panel, self.box.notice, self.saved], **QUIET,
        )  # fmt: skip

    def open_for_last(self, data: gr.SelectData, history: list[ChatEntry], system: str) -> tuple[Any, ...]:
        """Open the panel for the last answer, if that is the action."""
        if str(data.value) != TEACH:
            return (gr.skip(),) * 7
        return self.open(history, len(history) - 1, system)

    def open_for_disliked(self, data: gr.LikeData, history: list[ChatEntry], system: str) -> tuple[Any, ...]:
        """Open the panel for an answer that a visitor dislikes."""
        if data.liked is not False or not isinstance(data.index, int):
            return (gr.skip(),) * 7
        return self.open(history, data.index, system)

    def open(self, history: list[ChatEntry], index: int, system: str) -> tuple[Any, ...]:
        """Open the panel for the answer at `index`, which becomes the start of the better one's text."""
        taught = lesson_of(history, index, system)
        if not taught:
            return (gr.skip(),) * 7
        title = f"**{escape_markdown(shorten(taught['question'], 120))}** — write or speak the better answer."
        return gr.Column(visible=True), title, "", "", "", "", taught

    def save(
        self, taught: Taught, better: str, must_say: str, phrasings: str, model: str, saved: int, request: gr.Request
    ) -> tuple[Any, str, Any]:
        """Store the lesson and close the panel; or say what is wrong."""
        try:
            check_owner(request, None)
            if not taught:
                raise LabError("There is no question to teach: choose Teach below an answer.")
            self.lessons.add(
                taught["question"], taught["bad"], better, model, taught["context"], must_say, phrasings.splitlines()
            )
        except LabError as error:
            return gr.skip(), visitor_message(error), gr.skip()
        gr.Info("The lesson is saved. Train on your lessons in the Train tab.")
        return gr.Column(visible=False), "", saved + 1


def lesson_of(history: Sequence[ChatEntry], index: int, system: str) -> Taught:
    """Return what an answer was asked: its question, its text and the turns before; empty if no question is before."""
    asked = next((i for i in range(min(index, len(history) - 1), -1, -1) if is_question(history[i])), None)
    if asked is None:
        return {}
    context: list[Message] = to_messages(history[:asked], system)
    bad = without_notes(text_of(history[index]["content"])).strip()
    return {"question": text_of(history[asked]["content"]), "bad": bad, "context": context}


def is_question(entry: ChatEntry) -> bool:
    """Return whether a message is a question in words, not a recording."""
    return entry["role"] == "user" and bool(text_of(entry["content"]).strip())


def escape_markdown(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]()<>#+-!|~$&" else sign for sign in text)
