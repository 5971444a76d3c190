"""Stop running answers: one event for each visitor of a tab."""

from __future__ import annotations

import threading

import gradio as gr


class RunningAnswers:
    """The running answers of a tab, one for each visit."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    def start(self, request: gr.Request) -> threading.Event:
        """Return the event that stops the visitor's new answer once it is set. Stops an answer that still runs."""
        visit = request.session_hash or ""
        if previous := self._events.get(visit):
            previous.set()
        self._events[visit] = threading.Event()
        return self._events[visit]

    def is_replaced(self, request: gr.Request, event: threading.Event) -> bool:
        """Return whether the visitor has asked again since `event` started, or left."""
        return self._events.get(request.session_hash or "") is not event

    def stop(self, request: gr.Request) -> None:
        """Stop the visitor's running answer, within one token."""
        if event := self._events.get(request.session_hash or ""):
            event.set()

    def close_visit(self, request: gr.Request) -> None:
        """Stop the visitor's answer and forget the visit. Called when they close the page."""
        if event := self._events.pop(request.session_hash or "", None):
            event.set()
