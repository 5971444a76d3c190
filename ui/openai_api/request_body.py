"""What a request brings: its sender, its JSON body, the parameters that are supported; and the limit of its size."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference.metrics import count_refusal
from inference.validation import nearest, shorten
from inference.visitors.limits import Visitor, address_of
from inference.visitors.values import MAX_CONVERSATION, describe
from ui.openai_api.api_errors import ApiError, refuse, unsupported

MAX_JSON = 8 * MAX_CONVERSATION  # bytes; a character takes 6 as \\uXXXX


def sender_of(request: Request) -> Visitor:
    """The program that sends a request. It is known by its address alone."""
    return Visitor(address_of(request.client.host if request.client else "", request.headers))


async def read_json(request: Request) -> dict[str, Any]:
    """The body, a JSON object. Raises ApiError if it is something else."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise ApiError(400, "The body is not marked as JSON: send the header “Content-Type: application/json”.")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not JSON that can be read: send a JSON object.") from error
    if not isinstance(body, dict):
        raise ApiError(400, f"The body can't be {describe(body)}: send a JSON object.")
    return body


@dataclass(frozen=True)
class Parameters:
    """The parameters of an endpoint. All of them may be null, which is as if they were left out.

    Attributes:
        known: those that are supported.
        required: those of them that must be there.
        accepted: those that no answer depends on.
        neutral: those that are not supported, with the values that change nothing: many clients send all they know.
        aliases: other names of supported ones.
    """

    known: Collection[str]
    required: Collection[str]
    accepted: Collection[str] = ()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The supported parameters of a request by name. Raises ApiError for any other, and if one is missing."""
        values: dict[str, Any] = {}
        for name, value in body.items():
            own = self.aliases.get(name, name)
            if own in self.known:
                if value is not None or own in self.required:
                    values[own] = value
            elif name in self.neutral:
                if value is not None and not is_one_of(value, self.neutral[name]):
                    raise unsupported(name)
            elif name not in self.accepted:
                sentence = f"“{shorten(name)}” is not a parameter of this API{nearest(name, self.known)}: leave it out."
                raise refuse(shorten(name), sentence, "unknown_parameter")
        for name in self.required:
            if name not in values:
                raise refuse(name, f"“{name}” is missing: add it.", "missing_required_parameter")
        return values


def is_one_of(value: object, neutral: tuple[Any, ...]) -> bool:
    """Whether a value is one of these. False is not 0 here."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


class BodyLimit:
    """ASGI middleware: a body above the limit is refused with status 413, also if its length was not announced.

    The limit is MAX_JSON bytes, or `upload_bytes` and some for the other fields if a file is sent."""

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self._app, self._upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        uploads = headers.get(b"content-type", b"").startswith(b"multipart/")
        limit = self._upload_bytes + 100_000 if uploads else MAX_JSON
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limit:
            return await too_large(limit).response(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large(limit)
            return message

        await self._app(scope, counted, send)


def too_large(limit: int) -> ApiError:
    """The error for a body of more than `limit` bytes."""
    count_refusal("size")
    return ApiError(413, f"The request is larger than {limit / 1e6:.0f} MB: send less.", "request_too_large")
