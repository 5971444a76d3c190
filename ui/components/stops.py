"""Who can stop which answer: one event for each visitor of a tab."""

from __future__ import annotations

import threading

import gradio as gr


class Stops:
    """The running answers of a tab, by the visit that asked."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}

    def begin(self, request: gr.Request) -> threading.Event:
        """The event that ends the visitor's new answer once it is set. An answer that still runs ends."""
        visit = request.session_hash or ""
        if before := self._events.get(visit):
            before.set()
        self._events[visit] = threading.Event()
        return self._events[visit]

    def newer(self, request: gr.Request, event: threading.Event) -> bool:
        """Whether the visitor has asked again since `event` began, or left."""
        return self._events.get(request.session_hash or "") is not event

    def press(self, request: gr.Request) -> None:
        """End the visitor's running answer, within one token."""
        if event := self._events.get(request.session_hash or ""):
            event.set()

    def leave(self, request: gr.Request) -> None:
        """The visitor closed the page: end their answer, forget them."""
        if event := self._events.pop(request.session_hash or "", None):
            event.set()
