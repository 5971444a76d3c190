"""The microphone of a tab: record or upload speech, show the transcript's details, send the transcript."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.events import Dependency

from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.speech import Transcript
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import VoiceValues, read
from ui.components.events import TRANSCRIBING
from ui.components.running_answers import RunningAnswers
from ui.components.visitor import visitor_of

# Whisper's codes; "" detects the language.
LANGUAGES: list[str | int | float | tuple[str, str | int | float]] = [
    ("detect", ""), ("English", "en"), ("German", "de"), ("French", "fr"), ("Spanish", "es"), ("Italian", "it"),
    ("Portuguese", "pt"), ("Dutch", "nl"), ("Swedish", "sv"), ("Polish", "pl"), ("Turkish", "tr"), ("Russian", "ru"),
    ("Arabic", "ar"), ("Hindi", "hi"), ("Chinese", "zh"), ("Japanese", "ja"),
]  # fmt: skip
NO_MICROPHONE = (
    "No microphone? Allow it in the browser's address bar and reload the page, or choose an audio file instead."
)


class VoiceInput:
    """The recorder, the transcript line below it, and two settings that the tab places with `build_settings`.

    `prefix` makes the element ids of a tab unique.
    """

    def __init__(self, lab: Lab, limits: VisitorLimits, prefix: str = "") -> None:
        self.lab, self.limits, self.running = lab, limits, RunningAnswers()
        self.recorder = gr.Audio(
            sources=["microphone", "upload"], type="filepath", label="Ask by voice", editable=False, buttons=[],
            waveform_options=gr.WaveformOptions(show_recording_waveform=False), elem_id=f"{prefix}voice",
        )  # fmt: skip
        note = html.escape(lab.transcriber.note) or NO_MICROPHONE
        self.transcript_line = gr.HTML(note, elem_classes="figures", elem_id=f"{prefix}transcript")

    def build_settings(self) -> None:
        """Create the settings inside the open block."""
        with gr.Row():
            self.send_at_once = gr.Checkbox(True, label="Send when I stop speaking")
            self.language = gr.Dropdown(LANGUAGES, value="", label="Voice language")

    def connect(self, question: gr.Textbox, notice: gr.Markdown, stop: gr.Button, **options: Any) -> Dependency:
        """Transcribe each recording into the question box. `options` are those of a Gradio event.

        Returns the event after which the question can be sent.
        """
        self.recorder.start_recording(self.load_model, None, self.transcript_line, **options)
        return gr.on(
            [self.recorder.stop_recording, self.recorder.upload], self.transcribe, [self.recorder, self.language],
            [question, self.transcript_line, notice, stop], **{**options, **TRANSCRIBING},
        )  # fmt: skip

    def load_model(self) -> Iterator[str]:
        """Load the speech model while the visitor speaks. Yields the transcript line."""
        try:
            for step in self.lab.transcriber.load():
                yield f"{step.waiting}…"
            yield html.escape(self.lab.transcriber.note)
        except LabError as error:
            yield html.escape(visitor_message(error))

    def transcribe(
        self, request: gr.Request, recording: str | None, language: str
    ) -> Iterator[tuple[object, str, str, gr.Button]]:
        """Transcribe a recording. Yields the text of the question box, the transcript line, the notice and the stop
        button."""
        if not recording:
            return
        stop, ended = self.running.start(request), gr.Button(interactive=False)
        try:
            code = read(VoiceValues, language=language).language or None
            with self.limits.admit(visitor_of(request), "recording"):
                for step in self.lab.transcribe(recording, code, stop.is_set):
                    if isinstance(step, Transcript):
                        yield step.text, transcript_html(step), "", ended
                        return
                    yield gr.skip(), f"{step.waiting}…", "", gr.Button(interactive=True)
            yield "", "Stopped.", "", ended
        except LabError as error:
            yield "", NO_MICROPHONE, visitor_message(error), ended


def transcript_html(transcript: Transcript) -> str:
    """Return the transcript line: durations, language, model and the note about the model."""
    facts = (
        f"{transcript.duration:.1f} s of speech ({transcript.language}) · "
        f"transcribed in {transcript.seconds:.1f} s by {transcript.model}"
    )
    return f"{html.escape(facts)}<br>{html.escape(transcript.note)}"
