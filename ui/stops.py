"""Who can stop which answer: one event for each visitor of a tab."""

from __future__ import annotations

import threading

import gradio as gr


class Stops:
    """The running answers of a tab, by the visit that asked."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    def begin(self, request: gr.Request) -> threading.Event:
        """The event that ends the visitor's new answer once it is set."""
        event = self._events.setdefault(request.session_hash or "", threading.Event())
        event.clear()
        return event

    def press(self, request: gr.Request) -> None:
        """End the visitor's running answer, within one token."""
        if event := self._events.get(request.session_hash or ""):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """The visitor closed the page: end their answer, forget them."""
        if event := self._events.pop(request.session_hash or "", None):
            event.set()
