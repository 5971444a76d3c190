"""Options that event handlers share."""

from __future__ import annotations

from typing import Any

from inference.visitors.limits import VisitorLimits

# Not part of the API, no progress overlay, and eight visitors at once.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
# Handled at once, also while answers fill the queue.
IMMEDIATE: dict[str, Any] = {"api_visibility": "private", "queue": False}
# Recordings wait for each other, not for answers.
TRANSCRIBING: dict[str, Any] = {"concurrency_id": "transcriptions", "concurrency_limit": 4}


def answering(limits: VisitorLimits) -> dict[str, Any]:
    """Return the options of all events that answer a question. They wait for each other, and nothing else for them."""
    return {"concurrency_id": "answers", "concurrency_limit": limits.answers_at_once}
