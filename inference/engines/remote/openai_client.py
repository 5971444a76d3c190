"""The connection to a server: an OpenAI client on an event loop in a thread of its own.

On the event loop, a cancelled request closes its connection at once, even while the server sends nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import httpx2
import openai

from inference.engines.remote.server_errors import UnexpectedResponse

CONNECT_TIMEOUT = 5.0  # seconds
MAX_BYTES = 64_000_000  # of one response: the probabilities of 100,000 tokens have fewer

T = TypeVar("T")


@dataclass(frozen=True)
class Connection:
    """An open client, its event loop, and the thread of the loop."""

    client: openai.AsyncOpenAI
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


class BoundedBody(httpx2.AsyncByteStream):
    """The body of a response. Raises UnexpectedResponse after MAX_BYTES, so that no server can fill the memory."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        async for part in self._body:
            received += len(part)
            if received > MAX_BYTES:
                raise UnexpectedResponse
            yield part

    async def aclose(self) -> None:
        """Close the connection."""
        await self._body.aclose()


async def bound(response: httpx2.Response) -> None:
    """Bound a response whose body is not read yet. Raises UnexpectedResponse for a compressed one, which can grow a
    thousandfold."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise UnexpectedResponse
    response.stream = BoundedBody(cast(httpx2.AsyncByteStream, response.stream))


class Client:
    """Runs requests to the server at `url`. The first request opens the connection."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url, self._api_key = url, api_key
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def submit(self, request: Callable[[openai.AsyncOpenAI], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a request, which gets the OpenAI client. It can be cancelled through its future."""
        with self._lock:
            if self._connection is None:
                self._connection = self._open()
            return asyncio.run_coroutine_threadsafe(request(self._connection.client), self._connection.loop)

    def close(self) -> bool:
        """Cancel all requests and close the connections. Returns False if none was open."""
        with self._lock:
            if self._connection is None:
                return False
            connection, self._connection = self._connection, None
            asyncio.run_coroutine_threadsafe(self._cancel_all(connection.client), connection.loop).result()
            connection.loop.call_soon_threadsafe(connection.loop.stop)
            connection.thread.join()
            connection.loop.close()
            return True

    def _open(self) -> Connection:
        client = openai.AsyncOpenAI(
            base_url=self._url,
            # Without a key the client would send that of OPENAI_API_KEY, which belongs to another server.
            api_key=self._api_key or "none",
            max_retries=0,  # the engine retries, so that the visitor can see and stop it
            # The engine has its own timeout without a token, because servers send comments to keep the stream alive.
            timeout=openai.Timeout(None, connect=CONNECT_TIMEOUT),
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"response": [bound]}),
        )
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="remote engine", daemon=True)
        thread.start()
        return Connection(client, loop, thread)

    async def _cancel_all(self, client: openai.AsyncOpenAI) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()  # of streams that ended early
        await client.close()
