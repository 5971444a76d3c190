"""What can go wrong between a client and the Hub, on demand: refusals, slowness, silence, cuts, wrong bytes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, Field

Message = dict
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[dict, Receive, Send], Awaitable[None]]

REFUSALS = {
    "401": "Invalid credentials in Authorization header",
    "403": "You have read access but not the required permissions for this operation",
    "429": "We had to rate limit you",
    "500": "Internal Server Error",
    "503": "Service Unavailable",
}


class Fault(BaseModel):
    """One thing that goes wrong, the next `times` that a request's path matches (None: until the faults are cleared).

    `503`, `500`, `429`, `401`, `403` are answers, with `Retry-After` where `retry_after` seconds are given. `slow`
    moves bodies at `rate` bytes a second. `stall` takes a request and answers after `seconds`; with `after` it falls
    silent for that long when so many bytes of the answer's body have gone. `cut` closes the connection after `after`
    bytes of the body: of what is uploaded in a PUT, else of the answer; with 0, before an answer to a request that has
    been done. `corrupt` flips the bits of the byte at `at`: of an answer's body, or of an upload, which is then kept
    under the SHA-256 that it should have had. The last two, `slow` and a silence within a body let HEAD pass.
    """

    kind: Literal["503", "500", "429", "401", "403", "slow", "stall", "cut", "corrupt"]
    match: re.Pattern[str] = re.compile("")
    method: str | None = None
    times: int | None = Field(default=1, gt=0)
    retry_after: int | None = None
    rate: float = Field(default=2**16, gt=0)
    seconds: float = 10
    after: int = 0
    at: int = 0

    def concerns(self, method: str, path: str) -> bool:
        """Whether it strikes this request."""
        of_bodies = self.kind in ("slow", "cut", "corrupt") or (self.kind == "stall" and self.after > 0)
        has_body = method != "HEAD" or not of_bodies
        return has_body and self.method in (None, method) and self.match.search(path) is not None

    async def strike(self, app: App, scope: dict, receive: Receive, send: Send) -> None:
        """Answer the request, by the app or not, with this fault."""
        if self.kind in REFUSALS:
            await self.refuse(send)
        elif self.kind == "stall":
            if not self.after:
                await asyncio.sleep(self.seconds)
            await app(scope, receive, self.silent_send(send) if self.after else send)
        elif self.kind == "slow":
            await app(scope, self.slow_receive(receive), self.slow_send(send))
        elif self.kind == "corrupt" and scope["method"] == "PUT":
            await app({**scope, "unchecked": True}, self.flipped_receive(receive), send)
        elif self.kind == "corrupt":
            await app(scope, receive, self.flipped_send(send))
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
        """Answer with a status instead of what was asked for."""
        body = json.dumps({"error": REFUSALS[self.kind]}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        headers["X-Error-Message"] = REFUSALS[self.kind]
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": int(self.kind), "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def slow_receive(self, receive: Receive) -> Receive:
        """Take the request's body no faster than `rate`."""

        async def slowly() -> Message:
            message = await receive()
            await asyncio.sleep(len(message.get("body", b"")) / self.rate)
            return message

        return slowly

    def slow_send(self, send: Send) -> Send:
        """Give the answer's body no faster than `rate`, ten times a second."""
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

    def silent_send(self, send: Send) -> Send:
        """The answer, with a silence after so many bytes of its body."""
        left = self.after

        async def with_silence(message: Message) -> None:
            nonlocal left
            body = message.get("body", b"")
            if 0 <= left < len(body):
                await send({"type": "http.response.body", "body": body[:left], "more_body": True})
                await asyncio.sleep(self.seconds)
                message = {**message, "body": body[left:]}
            left -= len(body)
            await send(message)

        return with_silence

    def flipped(self) -> Callable[[bytes], bytes]:
        """A function that is given a stream's pieces in turn and returns them with the byte at `at` inverted."""
        start = 0

        def flip(piece: bytes) -> bytes:
            nonlocal start
            here, start = self.at - start, start + len(piece)
            if not 0 <= here < len(piece):
                return piece
            return piece[:here] + bytes([piece[here] ^ 0xFF]) + piece[here + 1 :]

        return flip

    def flipped_receive(self, receive: Receive) -> Receive:
        """The request's body with a wrong byte."""
        flip = self.flipped()

        async def wrongly() -> Message:
            message = await receive()
            return {**message, "body": flip(message["body"])} if message.get("body") else message

        return wrongly

    def flipped_send(self, send: Send) -> Send:
        """The answer's body with a wrong byte."""
        flip = self.flipped()

        async def wrongly(message: Message) -> None:
            await send({**message, "body": flip(message["body"])} if message.get("body") else message)

        return wrongly

    def cut_receive(self, receive: Receive) -> Receive:
        """The request's body until `after` bytes have come."""
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
        """The answer until `after` bytes of its body have gone."""
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
    """The connection is to be closed here. No Exception, so that the app's own handlers let it pass."""


class Faults:
    """Those that are switched on; the first that concerns a request strikes."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []

    def next(self, method: str, path: str) -> Fault | None:
        """The fault for a request, counted."""
        for fault in self.waiting:
            if fault.concerns(method, path):
                if fault.times is not None:
                    fault.times -= 1
                if fault.times == 0:
                    self.waiting.remove(fault)
                return fault
        return None
