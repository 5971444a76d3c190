"""The application under `/v1`: its endpoints, the key that guards them, and their errors."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from inference.lab import Lab
from inference.metrics import count_refusal
from inference.settings import Settings
from inference.visitors.limits import VisitorLimits
from ui.openai_api.answer_stream import ClientGone
from ui.openai_api.api_errors import ApiError, as_api_error
from ui.openai_api.completions import Chat
from ui.openai_api.request_body import BodyLimit
from ui.openai_api.request_queue import RequestQueue
from ui.openai_api.sound import Sound

SOUNDS_AT_ONCE = 4  # recordings and texts under way at the same time, as on the page
OTHER_THREADS = 8  # for short work and for the ends of answers
CLIENT_GONE = 499  # nginx's status; nobody receives it

Endpoint = Callable[[Request], Awaitable[Response]]


class KeyGuard:
    """ASGI middleware: requests need the header `Authorization: Bearer KEY`, if there is a key."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "http" and self._expected:
            sent = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(sent, self._expected):
                count_refusal("key")
                error = ApiError(
                    401, "The API key is missing or wrong: send “Authorization: Bearer KEY”.", "invalid_api_key"
                )
                return await error.response(scope, receive, send)
        await self._app(scope, receive, send)


def answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose exceptions are all responses in OpenAI's form."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)
        except Exception as error:
            return as_api_error(error).response

    return answer


async def no_endpoint(request: Request, error: Exception) -> Response:
    """The response to a path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path}"[:200]
    known = "models, chat/completions, audio/transcriptions and audio/speech"
    return ApiError(error.status_code, f"There is no “{path}”: /v1 has {known}.", "unknown_url").response


def openai_routes(lab: Lab, limits: VisitorLimits, settings: Settings) -> list[Mount]:
    """`/v1`, for the application that the page is launched with."""
    at_once = settings.answers_at_once
    pool = ThreadPoolExecutor(at_once + SOUNDS_AT_ONCE + OTHER_THREADS, thread_name_prefix="v1")
    chat = Chat(lab, limits, RequestQueue(at_once, settings.queue), pool)
    sound = Sound(lab, limits, RequestQueue(SOUNDS_AT_ONCE, settings.queue), pool)
    endpoints: list[tuple[str, Endpoint, str]] = [
        ("/models", chat.list_models, "GET"),
        ("/models/{model:path}", chat.show_model, "GET"),
        ("/chat/completions", chat.complete, "POST"),
        ("/audio/transcriptions", sound.transcribe, "POST"),
        ("/audio/speech", sound.speak, "POST"),
    ]
    application = Starlette(
        routes=[Route(path, answered(endpoint), methods=[method]) for path, endpoint, method in endpoints],
        middleware=[
            Middleware(KeyGuard, key=settings.api_key), Middleware(BodyLimit, upload_bytes=settings.upload_bytes),
        ],
        exception_handlers={404: no_endpoint, 405: no_endpoint},
    )  # fmt: skip
    return [Mount("/v1", application)]
