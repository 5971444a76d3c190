"""The named endpoints that programs use, through `gradio_client` or HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import gradio as gr

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.lab import REFRESH, Lab
from inference.speech.transcriber import Transcript


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """A program gets the lab's sentence as its error; the server's log gets no traceback."""
    try:
        yield
    except LabError as error:
        raise gr.Error(str(error), print_exception=False) from error


def add_endpoints(lab: Lab) -> None:
    """Add `/models`, `/ask`, `/transcribe` and `/ask_voice` to the Blocks that are being built."""

    def models() -> list[dict]:
        """The catalog: each model's id, name, base, state and summary."""
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
        """Ask one question; yields the growing answer. The model is an id of the catalog or user/repo on the Hub. A
        seed draws the same answer each time, temperature 0 too."""
        messages = [Message(role="system", content=system_prompt)] if system_prompt else []
        messages.append(Message(role="user", content=question))
        answer = ""
        with in_a_sentence():
            for chunk in lab.ask(model, messages, Sampling(temperature, max_tokens=max_tokens, seed=seed)):
                answer += chunk.text
                if chunk.text:
                    yield answer

    def transcribe(audio: str, language: str = "") -> dict:
        """What is said in a recording: text, language, duration and seconds spent. An empty language is found out."""
        return asdict(heard_in(audio, language))

    def ask_voice(audio: str, model: str, language: str = "") -> Iterator[tuple[str, str]]:
        """Ask by voice; yields what was heard and the growing answer."""
        transcript = heard_in(audio, language)
        yield transcript.text, ""
        for answer in ask(transcript.text, model):
            yield transcript.text, answer

    def heard_in(audio: str, language: str) -> Transcript:
        with in_a_sentence():
            *_, transcript = lab.transcribe(audio, language or None)
        return transcript

    with gr.Row(visible=False):  # a file comes in through a component; there is no type for it in gr.api
        recording = gr.Audio(type="filepath", label="audio")
        model, language = gr.Textbox(label="model"), gr.Textbox(label="language")
        transcript, answer, record = gr.Textbox(label="transcript"), gr.Textbox(label="answer"), gr.JSON(label="heard")
        run = gr.Button()
    described = {"api_name": "transcribe", "api_description": transcribe.__doc__}
    run.click(transcribe, [recording, language], record, **described)
    described = {"api_name": "ask_voice", "api_description": ask_voice.__doc__, "concurrency_limit": 8}
    run.click(ask_voice, [recording, model, language], [transcript, answer], **described)
    gr.api(models, api_name="models", api_description=models.__doc__)
    gr.api(ask, api_name="ask", api_description=ask.__doc__, concurrency_limit=8)
