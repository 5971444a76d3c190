"""A conversation as Gradio's chatbot holds it, and what of it a model is told.

Notes for the reader (the figures under an answer, where the model changed) are HTML elements of their own; they are
taken out again before the conversation goes to a model.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from inference.engines import Figures, Message

NOTE = re.compile(r"\s*<(span|details) class=\"(?:figures|marker)\">.*?</\1>", re.DOTALL)


def text_of(content: object) -> str:
    """A chatbot message's text; Gradio hands it over as a string or as a list of parts. A recording has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return content.get("text", "")
    return "".join(part["text"] for part in content if part.get("type") == "text")


def without_notes(text: str) -> str:
    """An answer as the model gave it."""
    return NOTE.sub("", text)


def to_messages(history: Sequence[dict], system_prompt: str) -> list[Message]:
    """What the model is told: the system prompt, the questions and the answers."""
    messages = [Message(role="system", content=system_prompt.strip())] if system_prompt.strip() else []
    for entry in history:
        text = text_of(entry["content"])
        text = without_notes(text) if entry["role"] == "assistant" else text
        if text:
            messages.append(Message(role=entry["role"], content=text))
    return messages


def marker(name: str) -> dict:
    """The line that says from where on another model answers."""
    return {"role": "assistant", "content": f'<span class="marker">now: {html.escape(name)}</span>'}


def waiting(what: str, seconds: float) -> str:
    """What is shown until the first word comes."""
    return f'<span class="figures">{what}… {seconds:.0f} s</span>'


def with_figures(answer: str, model: str, figures: Figures) -> str:
    """An answer and its quiet line."""
    return f"{answer}\n\n{quiet_line(model, figures)}"


def quiet_line(model: str, figures: Figures) -> str:
    """What an answer of `model` (named elsewhere: "") cost, small; a click on it opens the rest."""
    line = [html.escape(model)] if model else []
    if figures.tokens_per_second:
        line.append(f"{figures.tokens_per_second:.0f} tokens/s")
    if figures.seconds_to_first_token is not None:
        line.append(f"first token {figures.seconds_to_first_token:.2f} s")
    line.append(f"{figures.completion_tokens} tokens")
    if figures.dropped_turns:
        line.append(f"the oldest {figures.dropped_turns} turns no longer fit and were left out")
    if figures.finish_reason == "length":
        line.append("cut at the length limit")
    if figures.finish_reason == "cancelled":
        line.append("stopped")
    counted = f"The prompt has {figures.prompt_tokens} tokens, {figures.cached_tokens} of them reused."
    more = counted if figures.prompt_tokens else "The prompt's tokens were not counted."
    return f'<details class="figures"><summary>{" · ".join(line)}</summary>{more}</details>'
