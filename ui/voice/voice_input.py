"""Speech becomes a question: transcribe what a composer records or what is attached to it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.speech import Transcript
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import VoiceValues, read
from ui.components.composer import Composer, caption_html, send_or_stop
from ui.components.events import TRANSCRIBING
from ui.components.running_answers import RunningAnswers
from ui.components.visitor import visitor_of
from ui.voice.voice_settings import VoiceSettings


class VoiceInput:
    """Transcribes what a composer's microphone records and what is attached to it."""

    def __init__(self, lab: Lab, limits: VisitorLimits, composer: Composer, settings: VoiceSettings) -> None:
        self.lab, self.limits, self.composer, self.settings = lab, limits, composer, settings
        self.running = RunningAnswers()

    def connect(self, **options: Any) -> list[tuple[Dependency, Component]]:
        """Transcribe each recording into the question box. `options` are those of a Gradio event.

        Returns the events after which the question can be sent, each with the component that holds the recording.
        """
        box = self.composer
        box.recorder.start_recording(self.load_model, None, box.caption, **options)
        shown, options = [box.text, box.caption, box.notice, box.send, box.stop], {**options, **TRANSCRIBING}
        return [
            (event(self.transcribe, [source, self.settings.language], shown, **options), source)
            for event, source in ((box.recorder.stop_recording, box.recorder), (box.attach.upload, box.attach))
        ]

    def load_model(self) -> Iterator[str]:
        """Load the speech model while the visitor speaks. Yields the caption."""
        try:
            for step in self.lab.transcriber.load():
                yield caption_html(f"{step.waiting}…")
            yield caption_html(html.escape(self.lab.transcriber.note) or "Recording…")
        except LabError as error:
            yield caption_html(html.escape(visitor_message(error)))

    def transcribe(self, request: gr.Request, recording: str | None, language: str) -> Iterator[tuple[Any, ...]]:
        """Transcribe a recording. Yields the text of the question box, the caption, the notice, and the send and the
        stop button."""
        if not recording:
            yield *[gr.skip()] * 3, *send_or_stop(running=False)
            return
        stop, ended = self.running.start(request), send_or_stop(running=False)
        try:
            code = read(VoiceValues, language=language).language or None
            with self.limits.admit(visitor_of(request), "recording"):
                for step in self.lab.transcribe(recording, code, stop.is_set):
                    if isinstance(step, Transcript):
                        yield step.text, transcript_html(step), "", *ended
                        return
                    words = step.text or gr.skip()  # of a long recording, while the rest is still read
                    yield words, caption_html(f"{step.waiting}…"), "", *send_or_stop(running=True)
            yield "", caption_html("Stopped."), "", *ended
        except LabError as error:
            yield "", caption_html(""), visitor_message(error), *ended


def transcript_html(transcript: Transcript) -> str:
    """Return the caption: durations, language, model and the note about the model."""
    facts = html.escape(
        f"{transcript.duration:.1f} s of speech ({transcript.language}) · "
        f"transcribed in {transcript.seconds:.1f} s by {transcript.model}"
    )
    if not transcript.note:
        return caption_html(facts)
    more = html.escape(transcript.note)
    return caption_html(f'<details class="figures"><summary>{facts} · more</summary>{more}</details>')
