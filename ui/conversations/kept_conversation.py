"""A conversation as the browser keeps it: pydantic models for what comes back from there, and for files with it.

A visitor can change their browser's storage and an exported file. So both are checked like any other request.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from inference.errors import LabError
from inference.visitors.values import MAX_CONVERSATION, MAX_MESSAGES, ModelId, Values, read, text
from ui.components.conversation import ChatEntry, text_of, without_notes

MAX_KEPT = 3_900_000  # UTF-16 units of all conversations in one browser; browsers refuse more than about 5 million
MAX_TITLE = 120  # characters
TITLE = 60  # characters of the first question that become the title
MAX_FIGURES = 300  # characters
FORMAT = "llama-finetuning-lab-conversations"
SUMMARY = re.compile(r'<details class="figures"><summary>(.*?)</summary>', re.DOTALL)
Id = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$", description="letters, digits and hyphens")]


class KeptMessage(Values):
    """A question or an answer. `figures` is the line below an answer: its model, speed and number of tokens."""

    role: Literal["user", "assistant"] = Field(description="user or assistant")
    content: Annotated[str, text(MAX_CONVERSATION)] = Field(description="text")
    figures: Annotated[str, text(MAX_FIGURES)] = ""


class Summary(Values):
    """A conversation without its messages, for the list. `changed` is in ms since 1970."""

    id: Id
    title: Annotated[str, text(MAX_TITLE)] = Field(description="text")
    model: ModelId = Field(description="a model's id")
    changed: int = Field(ge=0, lt=2**53, description="a time in milliseconds")


class KeptConversation(Summary):
    """A conversation with its messages. Every change gives it another `revision`."""

    revision: Id
    messages: list[KeptMessage] = Field(min_length=1, max_length=MAX_MESSAGES, description="a list of messages")


def messages_of(history: Sequence[ChatEntry]) -> list[KeptMessage]:
    """Return the questions and answers of the chatbot. Left out are recordings, whose transcripts are questions, and
    what a model thought before it answered."""
    kept = []
    for entry in history:
        if (entry.get("metadata") or {}).get("title"):
            continue
        shown = text_of(entry["content"])
        answer = entry["role"] == "assistant"
        content = without_notes(shown) if answer else shown
        line = SUMMARY.search(shown) if answer else None
        if content:
            figures = html.unescape(line[1])[:MAX_FIGURES] if line else ""
            kept.append(read(KeptMessage, role=entry["role"], content=content, figures=figures))
    return kept


def history_of(messages: Sequence[KeptMessage]) -> list[ChatEntry]:
    """Return what the chatbot shows of kept messages."""
    return [
        {"role": m.role, "content": f"{m.content}\n\n{figures_line(m.figures)}" if m.figures else m.content}
        for m in messages
    ]


def figures_line(figures: str) -> str:
    """Return the line of figures below a kept answer. It is a `details` element, so that it can be kept again."""
    return f'<details class="figures"><summary>{html.escape(figures)}</summary>Answered earlier.</details>'


def title_of(messages: Sequence[KeptMessage]) -> str:
    """Return the start of the first question on one line."""
    words = " ".join(messages[0].content.split()) if messages else ""
    return words if len(words) <= TITLE else words[: TITLE - 1].rstrip() + "…"


def as_markdown(title: str, messages: Sequence[KeptMessage]) -> str:
    """Return a conversation as a Markdown document."""
    parts = [f"# {title}"]
    for message in messages:
        speaker = "Question" if message.role == "user" else "Answer"
        figures = f"\n\n*{message.figures}*" if message.figures else ""
        parts.append(f"## {speaker}\n\n{message.content.strip()}{figures}")
    return "\n\n".join(parts) + "\n"


def read_export(content: bytes) -> list[KeptConversation]:
    """Return the conversations of an exported file. Raises LabError, one sentence; then none of them may be used."""
    if len(content) > 4 * MAX_KEPT:  # one UTF-16 unit takes up to 3 bytes in UTF-8, and JSON escapes some
        raise LabError(
            f"The file has {len(content) / 1e6:.1f} MB, more than a browser keeps: choose an export of this page."
        )
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LabError("The file is not JSON or is cut off: choose a file that this page exported as JSON.") from error
    conversations = found.get("conversations") if isinstance(found, dict) and found.get("format") == FORMAT else None
    if not isinstance(conversations, list):
        raise LabError("The file is not an export of conversations: choose a file that this page exported as JSON.")
    return [read_conversation(number, value) for number, value in enumerate(conversations, 1)]


def read_conversation(number: int, value: object) -> KeptConversation:
    """Return the conversation with that number in a file. Raises LabError."""
    try:
        if not isinstance(value, dict):
            raise LabError("It is not an object with a title and messages.")
        return read(KeptConversation, **{str(key): part for key, part in value.items()})
    except LabError as error:
        raise LabError(
            f"Nothing was imported, because conversation {number} of the file is broken: {as_clause(error)}"
        ) from error


def as_clause(error: LabError) -> str:
    """Return the sentence of an error as a part of another sentence."""
    return str(error)[:1].lower() + str(error)[1:]


def summaries_of(values: Sequence[object]) -> list[Summary]:
    """Return the summaries among values from the browser, without those that are not valid."""
    found = []
    for value in values:
        try:
            found.append(Summary.model_validate(value))
        except ValidationError:
            continue
    return found
