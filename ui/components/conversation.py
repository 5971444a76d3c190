"""Convert between a conversation as Gradio's chatbot holds it and the messages that a model gets.

The chatbot also shows notes: the figures under an answer, and the places where the model changed. They are HTML
elements of their own, which `to_messages` removes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from inference.engines import Figures, Message

ChatEntry = dict[str, Any]  # a message of the chatbot: "role" and "content"
MAX_NOTE = 300  # characters of a note
NOTE = re.compile(r"\s*<(span|details) class=\"(?:figures|marker)\">.*?</\1>", re.DOTALL)


def text_of(content: Any) -> str:
    """Return the text of a chatbot message, which is a string, a dict or a list of parts. A recording has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return content.get("text", "")
    return "".join(part["text"] for part in content if part.get("type") == "text")


def without_notes(text: str) -> str:
    """Return an answer without its notes."""
    return NOTE.sub("", text)


def to_messages(history: Sequence[ChatEntry], system_prompt: str) -> list[Message]:
    """Return the messages for the model: the system prompt, the questions and the answers."""
    messages = [Message(role="system", content=system_prompt.strip())] if system_prompt.strip() else []
    for entry in history:
        if (entry.get("metadata") or {}).get("title"):
            continue  # what the model thought, which the chatbot shows folded
        text = text_of(entry["content"])
        text = without_notes(text) if entry["role"] == "assistant" else text
        if text:
            messages.append(Message(role=entry["role"], content=text))
    return messages


def begun_answer(history: Sequence[ChatEntry]) -> str:
    """Return the last answer as far as it came; "" if it is only a thought. The space at its end is left out, because
    chat templates drop it, and the model then writes it again."""
    last = history[-1]
    is_thought = bool((last.get("metadata") or {}).get("title"))
    return "" if is_thought else without_notes(text_of(last["content"])).rstrip()


def model_marker(name: str) -> ChatEntry:
    """Return the line that marks the place from which another model answers."""
    return {"role": "assistant", "content": f'<span class="marker">Model changed to {html.escape(name)}</span>'}


def waiting_html(status: str, seconds: float) -> str:
    """Return the line that is shown until the first token arrives."""
    return f'<span class="figures">{html.escape(status)}… {seconds:.0f} s</span>'


def with_figures(answer: str, model: str, figures: Figures) -> str:
    """Return an answer with its figures."""
    return f"{answer}\n\n{figures_html(model, figures)}"


def with_problem(answer: str, problem: str) -> str:
    """Return the beginning of an answer with the sentence that says why it is not complete. The sentence is kept with
    the conversation as figures are."""
    more = "Continue it below, or ask again."
    line = f'<details class="figures"><summary>{html.escape(problem)}</summary>{more}</details>'
    return f"{answer}\n\n{line}"


def figures_html(model: str, figures: Figures) -> str:
    """Return the figures of an answer as a small line that opens to the rest. An empty `model` is left out."""
    line = [html.escape(model)] if model else []
    if figures.tokens_per_second:
        line.append(f"{figures.tokens_per_second:.0f} tokens/s")
    if figures.seconds_to_first_token is not None:
        line.append(f"first token {figures.seconds_to_first_token:.2f} s")
    line.append(f"{figures.completion_tokens} tokens")
    if figures.dropped_turns:
        line.append(f"without the oldest {figures.dropped_turns} turns, which no longer fit")
    if figures.finish_reason == "length":
        line.append("cut at the length limit")
    if figures.finish_reason == "cancelled":
        line.append("stopped")
    if figures.note:
        line.append(html.escape(figures.note[:MAX_NOTE]))
    counted = f"The prompt has {figures.prompt_tokens} tokens, {figures.cached_tokens} of them reused."
    more = counted if figures.prompt_tokens else "The number of prompt tokens is unknown."
    return f'<details class="figures"><summary>{" · ".join(line)}</summary>{more}</details>'
