"""Faults between a client and the Hub, on demand: refusals, slow, stalled and cut connections, wrong bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

from pydantic import BaseModel, Field

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

REFUSALS = {
    "401": "Invalid credentials in Authorization header",
    "402": "Payment Required",
    "403": "You have read access but not the required permissions for this operation",
    "429": "We had to rate limit you",
    "500": "Internal Server Error",
    "503": "Service Unavailable",
}


class Fault(BaseModel):
    """A fault for the next `times` requests whose path matches (None: until the faults are cleared). Kinds:

    - `503`, `500`, `429`, `401`, `402`, `403`: this status, with `Retry-After` if `retry_after` (s) is given.
    - `slow`: transfers bodies at `rate` bytes a second.
    - `stall`: answers after `seconds`; if `after` is given, pauses for `seconds` after that many bytes of the body.
    - `cut`: closes the connection after `after` bytes of the upload (PUT) or of the answer's body. With 0 the request
      is processed and its answer is lost.
    - `corrupt`: inverts the byte at `at` of the answer's body or of the upload. The Hub stores a corrupted upload under
      the SHA-256 of the correct content.

    `slow`, `cut`, `corrupt` and a stall within a body do not apply to HEAD.
    """

    kind: Literal["503", "500", "429", "401", "402", "403", "slow", "stall", "cut", "corrupt"]
    match: re.Pattern[str] = re.compile("")
    method: str | None = None
    times: int | None = Field(default=1, gt=0)
    retry_after: int | None = None
    rate: float = Field(default=2**16, gt=0)
    seconds: float = 10
    after: int = 0
    at: int = 0

    def matches(self, method: str, path: str) -> bool:
        """Whether it applies to this request."""
        of_bodies = self.kind in ("slow", "cut", "corrupt") or (self.kind == "stall" and self.after > 0)
        has_body = method != "HEAD" or not of_bodies
        return has_body and self.method in (None, method) and self.match.search(path) is not None

    async def apply(self, app: App, scope: dict, receive: Receive, send: Send) -> None:
        """Answer the request with this fault."""
        if self.kind in REFUSALS:
            await self.refuse(send)
        elif self.kind == "stall":
            if not self.after:
                await asyncio.sleep(self.seconds)
            await app(scope, receive, self.stalling_send(send) if self.after else send)
        elif self.kind == "slow":
            await app(scope, self.slow_receive(receive), self.slow_send(send))
        elif self.kind == "corrupt" and scope["method"] == "PUT":
            await app({**scope, "unchecked": True}, self.corrupt_receive(receive), send)
        elif self.kind == "corrupt":
            await app(scope, receive, self.corrupt_send(send))
        else:
            connection = scope["state"]["transport"]
            try:
                if scope["method"] == "PUT":
                    await app(scope, self.cut_receive(receive), send)
                else:
                    await app(scope, receive, self.cut_send(send))
            except Cut:
                connection.close()

    async def refuse(self, send: Send) -> None:
        """Answer with an error status."""
        body = json.dumps({"error": REFUSALS[self.kind]}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        headers["X-Error-Message"] = REFUSALS[self.kind]
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": int(self.kind), "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def slow_receive(self, receive: Receive) -> Receive:
        """Receive the request's body at `rate`."""

        async def slowly() -> Message:
            message = await receive()
            await asyncio.sleep(len(message.get("body", b"")) / self.rate)
            return message

        return slowly

    def slow_send(self, send: Send) -> Send:
        """Send the answer's body at `rate`, in ten pieces a second."""
        step = max(1, round(self.rate / 10))

        async def slowly(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] == "http.response.body":
                for start in range(0, len(body), step):
                    await asyncio.sleep(min(step, len(body) - start) / self.rate)
                    piece = {"type": "http.response.body", "body": body[start : start + step], "more_body": True}
                    await send(piece)
                message = {**message, "body": b""}
            await send(message)

        return slowly

    def stalling_send(self, send: Send) -> Send:
        """Send the answer with a pause after `after` bytes of its body."""
        left = self.after

        async def with_pause(message: Message) -> None:
            nonlocal left
            body = message.get("body", b"")
            if 0 <= left < len(body):
                await send({"type": "http.response.body", "body": body[:left], "more_body": True})
                await asyncio.sleep(self.seconds)
                message = {**message, "body": body[left:]}
            left -= len(body)
            await send(message)

        return with_pause

    def byte_inverter(self) -> Callable[[bytes], bytes]:
        """A function for a stream's pieces, in order. It inverts the byte at `at`."""
        start = 0

        def invert(piece: bytes) -> bytes:
            nonlocal start
            here, start = self.at - start, start + len(piece)
            if not 0 <= here < len(piece):
                return piece
            return piece[:here] + bytes([piece[here] ^ 0xFF]) + piece[here + 1 :]

        return invert

    def corrupt_receive(self, receive: Receive) -> Receive:
        """Receive the request's body with a wrong byte."""
        invert = self.byte_inverter()

        async def corrupted() -> Message:
            message = await receive()
            return {**message, "body": invert(message["body"])} if message.get("body") else message

        return corrupted

    def corrupt_send(self, send: Send) -> Send:
        """Send the answer's body with a wrong byte."""
        invert = self.byte_inverter()

        async def corrupted(message: Message) -> None:
            await send({**message, "body": invert(message["body"])} if message.get("body") else message)

        return corrupted

    def cut_receive(self, receive: Receive) -> Receive:
        """Receive `after` bytes of the request's body, then cut."""
        left = self.after

        async def until_cut() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0 or not message.get("more_body"):
                raise Cut
            return message

        return until_cut

    def cut_send(self, send: Send) -> Send:
        """Send `after` bytes of the answer's body, then cut."""
        left = self.after

        async def until_cut(message: Message) -> None:
            nonlocal left
            if self.after == 0:
                raise Cut
            body = message.get("body", b"")
            if len(body) >= left and message["type"] == "http.response.body":
                await send({"type": "http.response.body", "body": body[:left], "more_body": True})
                raise Cut
            left -= len(body)
            await send(message)

        return until_cut


class Cut(BaseException):
    """Closes the connection. A BaseException, because the app handles every Exception."""


class Faults:
    """The active faults. The first one that matches a request applies."""

    def __init__(self) -> None:
        self.active: list[Fault] = []

    def next(self, method: str, path: str) -> Fault | None:
        """The fault for a request. Counts it."""
        for fault in self.active:
            if fault.matches(method, path):
                if fault.times is not None:
                    fault.times -= 1
                if fault.times == 0:
                    self.active.remove(fault)
                return fault
        return None
