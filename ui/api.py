"""The named endpoints for programs, through `gradio_client`, HTTP or MCP: models, ask, transcribe, ask_voice.

Gradio reads the docstrings for its API description and for the MCP tools: one line for each argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gradio as gr

from inference.errors import LabError, visitor_message
from inference.lab import REFRESH, Lab
from inference.speech import Transcript
from inference.visitors.limits import VisitorLimits
from inference.visitors.values import DEFAULTS, AskValues, VoiceValues, read
from ui.components.events import TRANSCRIBING, answering
from ui.components.visitor import program_of


@contextmanager
def lab_errors_as_messages() -> Iterator[None]:
    """Send the message of a LabError to the program, without a traceback in the server's log."""
    try:
        yield
    except LabError as error:
        raise gr.Error(visitor_message(error), print_exception=False) from error


def add_endpoints(lab: Lab, limits: VisitorLimits) -> None:
    """Add `/models`, `/ask`, `/transcribe` and `/ask_voice` to the open Blocks."""

    def models() -> list[dict[str, Any]]:
        """List the models that can be asked: id, name, base, state and summary of each."""
        lab.refresh(at_most_every=REFRESH)
        return [
            {"id": e.id, "name": e.name, "base": e.base, "state": lab.state(e).text, "summary": e.card.summary}
            for e in lab.list_models()
        ]

    def ask(
        request: gr.Request,
        question: str,
        model: str,
        system_prompt: str = "",
        temperature: float = DEFAULTS.temperature,
        max_tokens: int = DEFAULTS.max_tokens,
        seed: int | None = None,
        top_p: float = DEFAULTS.top_p,
        strength: float = DEFAULTS.strength,
    ) -> Iterator[str]:
        """Ask a model one question. Yields the growing answer. It is the same each time with a seed or temperature 0.

        Args:
            question: The question, or any other text to answer.
            model: The id of a model as `models` lists it, or user/repo on the Hugging Face Hub.
            system_prompt: Instructions that the model gets before the question; empty for none.
            temperature: From 0, which always takes the most likely token, to 2.
            max_tokens: The longest answer in tokens, from 1 to 4,096.
            seed: A whole number that makes a random answer repeatable.
            top_p: Tokens are drawn from the most likely ones whose probabilities add up to this, from 0 to 1.
            strength: Of the model's adapter, from 0, which is its base, to 1.5; 1 is as it was trained.
        """
        with lab_errors_as_messages():
            values = read(
                AskValues, question=question, model=model, system_prompt=system_prompt, temperature=temperature,
                max_tokens=max_tokens, seed=seed, top_p=top_p, strength=strength,
            )  # fmt: skip
            with limits.admit(program_of(request)):
                yield from growing_answer(values)

    def transcribe(request: gr.Request, audio: str, language: str = "") -> dict[str, Any]:
        """Transcribe a recording of speech: text, language, duration (s) and the time taken (s).

        Args:
            audio: A recording of at most 5 minutes, in any audio format.
            language: A code such as "en"; empty to detect it.
        """
        with lab_errors_as_messages():
            language = read(VoiceValues, language=language).language or ""
            with limits.admit(program_of(request), "recording"):
                return asdict(transcript_of(audio, language))

    def ask_voice(request: gr.Request, audio: str, model: str, language: str = "") -> Iterator[tuple[str, str]]:
        """Ask by voice. Yields the transcript and the growing answer."""
        with lab_errors_as_messages():
            values = read(VoiceValues, language=language, model=model)
            visitor = program_of(request)
            with limits.admit(visitor), limits.admit(visitor, "recording"):
                transcript = transcript_of(audio, values.language or "")
                yield transcript.text, ""
                for answer in growing_answer(read(AskValues, question=transcript.text, model=model)):
                    yield transcript.text, answer

    def growing_answer(values: AskValues) -> Iterator[str]:
        answer = ""
        for chunk in lab.ask(values.model, values.messages, values.sampling):
            answer += chunk.text
            if chunk.text:
                yield answer

    def transcript_of(audio: str, language: str) -> Transcript:
        if not audio:
            raise LabError("The recording is missing: send an audio file.")
        *_, transcript = lab.transcribe(audio, language or None)
        assert isinstance(transcript, Transcript)  # the last step
        return transcript

    with gr.Row(visible=False):  # gr.api has no type for a file, so a component receives it
        recording = gr.Audio(type="filepath", label="audio")
        model, language = gr.Textbox(label="model"), gr.Textbox(label="language")
        transcript, answer = gr.Textbox(label="transcript"), gr.Textbox(label="answer")
        record = gr.JSON(label="record")
        run = gr.Button()
    run.click(
        transcribe,
        [recording, language],
        record,
        api_name="transcribe",
        **TRANSCRIBING,
    )
    run.click(
        ask_voice,
        [recording, model, language],
        [transcript, answer],
        api_name="ask_voice",
        **answering(limits),
    )
    gr.api(models, api_name="models", concurrency_limit=8)
    gr.api(ask, api_name="ask", **answering(limits))
