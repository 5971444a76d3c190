"""Options that event handlers share."""

from __future__ import annotations

from typing import Any

# Not part of the API, no progress overlay, and eight visitors at once.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 8}
# Handled at once, also while answers fill the queue.
IMMEDIATE: dict[str, Any] = {"api_visibility": "private", "queue": False}
