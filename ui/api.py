"""The named endpoints for programs, through `gradio_client` or HTTP: models, ask, transcribe, ask_voice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gradio as gr

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.lab import REFRESH, Lab
from inference.speech import Transcript


@contextmanager
def lab_errors_as_messages() -> Iterator[None]:
    """Send the message of a LabError to the program, without a traceback in the server's log."""
    try:
        yield
    except LabError as error:
        raise gr.Error(str(error), print_exception=False) from error


def add_endpoints(lab: Lab) -> None:
    """Add `/models`, `/ask`, `/transcribe` and `/ask_voice` to the open Blocks."""

    def models() -> list[dict[str, Any]]:
        """List the models: id, name, base, state and summary of each."""
        lab.refresh(at_most_every=REFRESH)
        return [
            {"id": e.id, "name": e.name, "base": e.base, "state": lab.state(e).text, "summary": e.card.summary}
            for e in lab.list_models()
        ]

    def ask(
        question: str,
        model: str,
        system_prompt: str = "",
        temperature: float = 0.2,
        max_tokens: int = 256,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Ask one question. Yields the growing answer. `model` is an id from /models or user/repo on the Hub. With a
        seed or temperature 0, the answer is the same each time."""
        messages = [Message(role="system", content=system_prompt)] if system_prompt else []
        messages.append(Message(role="user", content=question))
        answer = ""
        with lab_errors_as_messages():
            for chunk in lab.ask(model, messages, Sampling(temperature, max_tokens=max_tokens, seed=seed)):
                answer += chunk.text
                if chunk.text:
                    yield answer

    def transcribe(audio: str, language: str = "") -> dict[str, Any]:
        """Transcribe a recording. Returns text, language, duration (s) and the time taken (s). An empty language is
        detected."""
        return asdict(transcript_of(audio, language))

    def ask_voice(audio: str, model: str, language: str = "") -> Iterator[tuple[str, str]]:
        """Ask by voice. Yields the transcript and the growing answer."""
        transcript = transcript_of(audio, language)
        yield transcript.text, ""
        for answer in ask(transcript.text, model):
            yield transcript.text, answer

    def transcript_of(audio: str, language: str) -> Transcript:
        with lab_errors_as_messages():
            *_, transcript = lab.transcribe(audio, language or None)
            assert isinstance(transcript, Transcript)  # the last step
        return transcript

    with gr.Row(visible=False):  # gr.api has no type for a file, so a component receives it
        recording = gr.Audio(type="filepath", label="audio")
        model, language = gr.Textbox(label="model"), gr.Textbox(label="language")
        transcript, answer = gr.Textbox(label="transcript"), gr.Textbox(label="answer")
        record = gr.JSON(label="record")
        run = gr.Button()
    run.click(transcribe, [recording, language], record, api_name="transcribe", api_description=transcribe.__doc__)
    run.click(
        ask_voice,
        [recording, model, language],
        [transcript, answer],
        api_name="ask_voice",
        api_description=ask_voice.__doc__,
        concurrency_limit=8,
    )
    gr.api(models, api_name="models", api_description=models.__doc__)
    gr.api(ask, api_name="ask", api_description=ask.__doc__, concurrency_limit=8)
