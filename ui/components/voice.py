"""The microphone of a tab: record or choose a file, read what was heard, send it. No speech code."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from inference.errors import LabError
from inference.lab import Lab
from inference.speech.transcriber import Transcript

# What Whisper calls them; "" lets it find out by itself.
LANGUAGES = [
    ("find out", ""), ("English", "en"), ("German", "de"), ("French", "fr"), ("Spanish", "es"), ("Italian", "it"),
    ("Portuguese", "pt"), ("Dutch", "nl"), ("Swedish", "sv"), ("Polish", "pl"), ("Turkish", "tr"), ("Russian", "ru"),
    ("Arabic", "ar"), ("Hindi", "hi"), ("Chinese", "zh"), ("Japanese", "ja"),
]  # fmt: skip
NO_MICROPHONE = (
    "No microphone? Allow it in the browser's address bar and reload the page, or choose an audio file instead."
)


class Voice:
    """The recorder and its two settings, which the tab places where it wants them; `prefix` tells its elements from
    another tab's."""

    def __init__(self, lab: Lab, prefix: str = "") -> None:
        self.lab = lab
        self.recorder = gr.Audio(
            sources=["microphone", "upload"], type="filepath", label="Ask by voice", editable=False, buttons=[],
            waveform_options=gr.WaveformOptions(show_recording_waveform=False), elem_id=f"{prefix}voice",
        )  # fmt: skip
        note = html.escape(lab.transcriber.note) or NO_MICROPHONE
        self.line = gr.HTML(note, elem_classes="figures", elem_id=f"{prefix}heard")

    def settings(self) -> None:
        """Make the settings, inside whatever is open."""
        with gr.Row():
            self.send = gr.Checkbox(True, label="Send when I stop speaking")
            self.language = gr.Dropdown(LANGUAGES, value="", label="Voice language")

    def connect(self, question: gr.Textbox, notice: gr.Markdown, **options: Any) -> Dependency:
        """Listen to what is recorded or chosen and put it into the question box. `options` are an event's own. Returns
        the event after which the question can be sent."""
        self.recorder.start_recording(self.prepare, None, self.line, **options)
        return gr.on(
            [self.recorder.stop_recording, self.recorder.upload], self.transcribe, [self.recorder, self.language],
            [question, self.line, notice], **options,
        )  # fmt: skip

    def prepare(self) -> Iterator[str]:
        """The visitor begins to speak: load the speech model meanwhile. Yields the line under the recorder."""
        try:
            for step in self.lab.transcriber.load():
                yield f"{step.waiting}…"
            yield html.escape(self.lab.transcriber.note)
        except LabError as error:
            yield html.escape(str(error))

    def transcribe(self, recording: str | None, language: str) -> Iterator[tuple[object, str, str]]:
        """Yields the question box's text, the line under the recorder, and the notice where nothing was heard."""
        if not recording:
            return
        try:
            for step in self.lab.transcribe(recording, language or None):
                if isinstance(step, Transcript):
                    line = f"heard in {step.seconds:.1f} s · {step.duration:.1f} s of {step.language} · {step.model}"
                    yield step.text, f"{line}<br>{html.escape(step.note)}", ""
                else:
                    yield gr.skip(), f"{step.waiting}…", ""
        except LabError as error:
            yield "", NO_MICROPHONE, str(error)
