"""Plain text as HTML."""

from __future__ import annotations

import html
import re


def message_html(text: str) -> str:
    """Return an escaped message with its `commands` in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
