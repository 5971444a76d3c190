"""The queue of the API: its requests wait here for each other, as the page's wait in Gradio's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inference.metrics import count_refusal
from ui.openai_api.api_errors import BUSY_SECONDS, ApiError


class RequestQueue:
    """At most `at_once` requests are under way and `waiting` more wait, the oldest first. For one event loop."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._waiting, self._most_waiting = 0, waiting

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot, and hold it as long as the block lasts. Raises ApiError if too many wait already."""
        if self._free.locked() and self._waiting >= self._most_waiting:
            count_refusal("queue")
            raise ApiError(
                503, f"{self._waiting} requests are waiting already: ask again in a moment.", "queue_full",
                retry_after=BUSY_SECONDS,
            )  # fmt: skip
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()
