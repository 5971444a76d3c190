"""Read a generator that blocks, such as an answer, from the event loop: one step at a time, in a thread; and send it.

A step starts when its result is wanted. So a client that does not read holds up its own answer, fills no memory, and
keeps no thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from inference.metrics import count_refusal

T = TypeVar("T")
TICK = 0.25  # seconds between two checks whether the client is there
UNREAD_SECONDS = 30.0  # for which a client may leave a full connection unread
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # no proxy keeps parts back
CLOSING: set[asyncio.Task[None]] = set()  # the event loop alone would not keep them alive


class ClientGone(Exception):
    """The client has closed the connection, so that nobody reads the answer."""


class Steps(Generic[T]):
    """The steps of the generator that `start` returns. It gets a function that says whether it should stop."""

    def __init__(self, pool: ThreadPoolExecutor, start: Callable[[Callable[[], bool]], Generator[T]]) -> None:
        self._pool = pool
        self._stop = threading.Event()
        self._generator = start(self._stop.is_set)
        self._step: Future[T | None] | None = None

    async def run(self) -> AsyncGenerator[T]:
        """Yield the results. However the reading ends, the generator is stopped and closed."""
        try:
            while True:
                self._step = self._pool.submit(next, self._generator, None)
                result = await asyncio.wrap_future(self._step)
                if result is None:
                    return
                yield result
        finally:
            self._stop.set()
            if self._step:  # which may be under way, and soon ends: a generator cannot be closed before
                self._step.add_done_callback(lambda _: self._pool.submit(self._generator.close))


async def while_connected(request: Request, results: AsyncGenerator[T]) -> AsyncGenerator[T | None]:
    """Yield the results, and None whenever there has been none for `TICK` seconds. Raises ClientGone when the client
    has closed the connection. However the reading ends, `results` is closed."""
    step: asyncio.Task[Any] | None = None
    checked = 0.0
    try:
        while True:
            step = step or asyncio.ensure_future(anext(results, results))
            done, _ = await asyncio.wait({step}, timeout=TICK)
            now = asyncio.get_running_loop().time()
            if now - checked >= TICK:
                checked = now
                if await request.is_disconnected():
                    raise ClientGone
            if not done:
                yield None
                continue
            result, step = step.result(), None
            if result is results:  # the end
                return
            yield result
    finally:
        # In a task of its own, because this one may be cancelled at each `await`.
        closing = asyncio.ensure_future(close(step, results))
        CLOSING.add(closing)
        closing.add_done_callback(CLOSING.discard)


async def close(step: asyncio.Task[Any] | None, results: AsyncGenerator[Any]) -> None:
    """Cancel a step that is under way, and close the generator."""
    if step:
        step.cancel()
        await asyncio.wait({step})
        with suppress(asyncio.CancelledError, Exception):
            step.result()
    await results.aclose()


class LiveResponse(StreamingResponse):
    """Sends `parts` while they are made. It ends if the client stops reading, and then closes `parts` and the generator
    `source` that they are made of."""

    def __init__(
        self, parts: AsyncGenerator[str] | AsyncGenerator[bytes], source: AsyncGenerator[Any], media_type: str
    ) -> None:
        super().__init__(parts, media_type=media_type, headers=HEADERS)
        self._parts, self._source = parts, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            count_refusal("unread stream")
        finally:
            await self._parts.aclose()
            await self._source.aclose()
