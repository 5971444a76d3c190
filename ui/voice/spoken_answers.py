"""Read answers aloud, one sentence after the other, while they still grow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from inference.errors import LabError, visitor_message
from inference.lab import Lab
from inference.voice import wav_bytes
from ui.components.composer import Composer, send_or_stop
from ui.components.events import IMMEDIATE, QUIET
from ui.components.running_answers import RunningAnswers

POLL_SECONDS = 0.2  # between two looks at an answer that grows
LISTENERS = 24  # at the same time
START_SECONDS = 3.0  # after a sentence's own time, until the next one starts if the browser does not report its end


@dataclass
class Reading:
    """One answer that is read aloud to one visitor. `ended` is set when the browser has played a sentence."""

    stop: threading.Event
    text: str = ""
    complete: bool = False
    speaking: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


class SpokenAnswers:
    """An invisible player, and what it plays for each visitor.

    Attributes:
        turn: a handler that returns a new text for it starts the reading.
    """

    def __init__(self, lab: Lab, composer: Composer) -> None:
        self.lab, self.composer, self.running = lab, composer, RunningAnswers()
        self._readings: dict[str, Reading] = {}
        self.player = gr.Audio(autoplay=True, visible="hidden", label="Spoken answer", elem_id="spoken")
        self.turn = gr.Textbox(visible="hidden", label="Turn", elem_id="spoken-turn")

    def connect(self) -> None:
        """Connect the player."""
        box = self.composer
        self.turn.change(
            self.read, None, [self.player, box.notice, box.send, box.stop], **{**QUIET, "concurrency_limit": LISTENERS}
        )
        self.player.stop(self.sentence_ended, None, None, **IMMEDIATE)
        box.recorder.start_recording(self.running.stop, None, None, **IMMEDIATE)

    def start(self, request: gr.Request, text: str = "", complete: bool = False) -> Reading:
        """Return the reading of a new answer, which its `text` may follow later. Ends the visitor's previous one."""
        reading = Reading(self.running.start(request), text, complete)
        self._readings[request.session_hash or ""] = reading
        return reading

    def sentence_ended(self, request: gr.Request) -> None:
        """Let the next sentence follow."""
        if reading := self._readings.get(request.session_hash or ""):
            reading.ended.set()

    def close_visit(self, request: gr.Request) -> None:
        """Stop reading and forget the visit. Called when the visitor closes the page."""
        self.running.close_visit(request)
        self._readings.pop(request.session_hash or "", None)

    def read(self, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Speak the visitor's answer. Yields the player, the notice, and the send and the stop button."""
        reading = self._readings.get(request.session_hash or "")
        notice: Any = gr.skip()
        if reading is not None:
            reading.speaking = True
            try:
                for sound, seconds in self.sentences(reading):
                    yield sound, gr.skip(), *send_or_stop(running=True)
                    self.wait(reading, seconds)
            except LabError as error:
                notice = visitor_message(error)
            reading.speaking = False
        if reading is None or self.running.is_replaced(request, reading.stop):
            yield (*[gr.skip()] * 4,)
        else:
            yield None, notice, *send_or_stop(running=not reading.complete)

    def sentences(self, reading: Reading) -> Iterator[tuple[bytes, float]]:
        """Yield each sentence as a WAV file and its duration (s), as soon as the growing text has it. Raises LabError
        if there is nothing to say or the voice cannot say it."""
        said = 0
        while not reading.stop.is_set():
            complete = reading.complete  # before the text, which may have grown since
            try:
                sentences = self.lab.voice.sentences(reading.text, complete)
            except LabError:
                if complete:
                    raise
                sentences = []
            if said < len(sentences):
                rate, sound = self.lab.voice.say(sentences[said])
                said += 1
                yield wav_bytes(rate, sound), len(sound) / rate
            elif complete:
                if said == 0:
                    raise LabError("There is nothing to read aloud: the answer has no words.")
                return
            else:
                reading.stop.wait(POLL_SECONDS)

    def wait(self, reading: Reading, seconds: float) -> None:
        """Return when the browser has played a sentence of so many seconds, or when the reading is stopped."""
        left = seconds + START_SECONDS
        while left > 0 and not reading.stop.is_set() and not reading.ended.wait(0.05):
            left -= 0.05
        reading.ended.clear()
