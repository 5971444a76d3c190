"""The named endpoints that programs use, through `gradio_client` or HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import gradio as gr

from inference.engines import Message, Sampling
from inference.errors import LabError
from inference.lab import Lab


def add_endpoints(lab: Lab) -> None:
    """Add `/models` and `/ask` to the Blocks that are being built."""

    def models() -> list[dict]:
        """The catalog: each model's id, name, base, state and summary."""
        return [
            {"id": e.id, "name": e.name, "base": e.base, "state": lab.state(e).text, "summary": e.card.summary}
            for e in lab.catalog.entries
        ]

    def ask(
        question: str,
        model: str,
        system_prompt: str = "",
        temperature: float = 0.2,
        max_tokens: int = 256,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Ask one question; yields the growing answer. A seed draws the same answer each time, temperature 0 too."""
        messages = [Message(role="system", content=system_prompt)] if system_prompt else []
        messages.append(Message(role="user", content=question))
        answer = ""
        try:
            for chunk in lab.ask(model, messages, Sampling(temperature, max_tokens=max_tokens, seed=seed)):
                answer += chunk.text
                if chunk.text:
                    yield answer
        except LabError as error:
            raise gr.Error(str(error), print_exception=False) from error

    gr.api(models, api_name="models", api_description=models.__doc__)
    gr.api(ask, api_name="ask", api_description=ask.__doc__, concurrency_limit=8)
