"""Who sends a request to the page or the API."""

from __future__ import annotations

import gradio as gr

from inference.visitors.limits import Visitor, address_of


def visitor_of(request: gr.Request) -> Visitor:
    """Return the visitor of the page that sends a request."""
    return Visitor(program_of(request).address, request.session_hash or "")


def program_of(request: gr.Request) -> Visitor:
    """Return the program that sends a request. It can choose its session freely, so only its address counts."""
    client = getattr(request, "client", None)
    return Visitor(address_of(getattr(client, "host", None) or "", getattr(request, "headers", None) or {}))
