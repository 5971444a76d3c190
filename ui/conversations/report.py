"""What the browser says of its conversations after each step, as a sentence and as the choices of the list."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from inference.errors import LabError
from inference.visitors.values import Values, read
from ui.conversations.kept_conversation import MAX_KEPT, Id, KeptConversation, Summary, as_clause, summaries_of

NEARLY_FULL = 0.9  # share of the room from which the list asks to make room
FULL = (
    "This browser's room for conversations is full, so the latest change is not kept: download conversations, "
    "delete them, then ask again."
)
FORBIDDEN = (
    "This browser does not let the page keep conversations: allow its storage for this page, or open the page in a tab "
    "of its own; until then download what you want to keep."
)


class Report(Values):
    """What `browser_store.js` returns.

    Attributes:
        problem: why the step failed.
        used: UTF-16 units of all conversations.
        shown: the id of the conversation in this tab.
        conversation: the conversation to show, not validated.
        empty: whether a new conversation is to be shown.
        listed: the newest conversations that match the search, not validated.
        found: how many match.
        removed: whether a removed conversation can be restored.
    """

    problem: Literal["", "full", "forbidden"] = ""
    used: int = Field(0, ge=0)
    shown: Id | None = None
    conversation: Any = None
    empty: bool = False
    listed: list[Any] = []
    found: int = Field(0, ge=0)
    removed: bool = False

    @property
    def summaries(self) -> list[Summary]:
        """The conversations to list."""
        return summaries_of(self.listed)

    @property
    def opened(self) -> KeptConversation | None:
        """The conversation to show. Raises LabError, one sentence, if it is broken."""
        if self.conversation is None:
            return None
        if not isinstance(self.conversation, dict):
            raise LabError("This conversation is broken and cannot be shown: delete it.")
        try:
            return read(KeptConversation, **{str(key): value for key, value in self.conversation.items()})
        except LabError as error:
            raise LabError(f"This conversation is broken and cannot be shown: {as_clause(error)}") from error

    @property
    def notice(self) -> str:
        """What the visitor should know: a problem, little room, or conversations that are not listed."""
        if self.problem:
            return FULL if self.problem == "full" else FORBIDDEN
        unread = len(self.listed) - len(self.summaries)
        if unread:
            return f"{unread} of the conversations in this browser cannot be read and are not listed."
        if self.used > NEARLY_FULL * MAX_KEPT:
            return (
                f"Conversations take {self.used / MAX_KEPT:.0%} of this browser's room: download and delete some "
                "before it is full."
            )
        if self.found > len(self.listed):
            return f"The newest {len(self.listed)} of {self.found:,} conversations: search for the others."
        return ""
