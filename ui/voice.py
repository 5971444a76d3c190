"""The microphone of the chat tab: record or choose a file, read what was heard, send it. No speech code."""

from __future__ import annotations

import html
from collections.abc import Iterator

import gradio as gr

from inference.errors import LabError
from inference.lab import Lab
from inference.speech import Heard

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
    """The recorder and its two settings, which the tab places where it wants them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.recorder = gr.Audio(
            sources=["microphone", "upload"], type="filepath", label="Ask by voice", editable=False, buttons=[],
            waveform_options=gr.WaveformOptions(show_recording_waveform=False), elem_id="voice",
        )  # fmt: skip
        self.line = gr.HTML(html.escape(lab.listener.note) or NO_MICROPHONE, elem_classes="figures", elem_id="heard")

    def settings(self) -> None:
        """Make the settings, inside whatever is open."""
        with gr.Row():
            self.send = gr.Checkbox(True, label="Send when I stop speaking")
            self.language = gr.Dropdown(LANGUAGES, value="", label="Voice language")

    def prepare(self) -> Iterator[str]:
        """The visitor begins to speak: load the speech model meanwhile. Yields the line under the recorder."""
        try:
            for step in self.lab.listener.load():
                yield f"{step.waiting}…"
            yield html.escape(self.lab.listener.note)
        except LabError as error:
            yield html.escape(str(error))

    def hear(self, recording: str | None, language: str) -> Iterator[tuple[object, str, str]]:
        """Yields the question box's text, the line under the recorder, and the notice where nothing was heard."""
        if not recording:
            return
        try:
            for step in self.lab.hear(recording, language or None):
                if isinstance(step, Heard):
                    line = f"heard in {step.seconds:.1f} s · {step.duration:.1f} s of {step.language} · {step.model}"
                    yield step.text, f"{line}<br>{html.escape(step.note)}", ""
                else:
                    yield gr.skip(), f"{step.waiting}…", ""
        except LabError as error:
            yield "", NO_MICROPHONE, str(error)
