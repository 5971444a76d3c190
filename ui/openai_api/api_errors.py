"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` and a status code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from inference.errors import LabError, visitor_message
from inference.shutdown import Restarting
from inference.visitors.limits import TooMany
from inference.visitors.values import WrongValue
from ui.operations import log_unexpected

BUSY_SECONDS = 10  # that a program should wait while the queue is full or the page restarts
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


@dataclass
class ApiError(Exception):
    """An error with its status. `message` is one sentence; `parameter` names what is wrong in the request."""

    status: int
    message: str
    code: str | None = None
    parameter: str | None = None
    retry_after: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}}

    @property
    def response(self) -> Response:
        """The error as a response."""
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def refuse(parameter: str, sentence: str, code: str | None = None) -> ApiError:
    """The error for a value of the request that cannot be used."""
    return ApiError(400, sentence, code, parameter)


def unsupported(parameter: str) -> ApiError:
    """The error for a parameter of OpenAI's API that this server does not have."""
    return refuse(parameter, f"“{parameter}” is not supported: leave it out.", "unsupported_parameter")


def as_api_error(error: Exception) -> ApiError:
    """Any exception as an error for the caller. An unexpected one is logged, and its text stays here."""
    match error:
        case ApiError():
            return error
        case TooMany():
            return ApiError(429, str(error), "rate_limit_exceeded", retry_after=error.seconds)
        case Restarting():
            return ApiError(503, str(error), "restarting", retry_after=BUSY_SECONDS)
        case WrongValue():
            return ApiError(400, str(error), "invalid_value", error.parameter or None)
        case LabError():
            return ApiError(400, visitor_message(error))
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
    log_unexpected(error)
    return ApiError(500, visitor_message(error))
