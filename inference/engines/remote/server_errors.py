"""What can go wrong with a server: which errors are worth a retry, and the message for each one.

A message holds nothing of the client's exceptions except the reason of a bad request, without the key.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import openai

from inference.errors import LabError, ServerUnavailable
from inference.validation import nearest, shorten

MAX_ATTEMPTS = 4  # of one question, before its first token
FIRST_DELAY = 0.5  # seconds before the second attempt; doubled for each further one
MAX_DELAY = 20.0  # seconds; if a server asks for a longer pause (Retry-After), there is no retry
TOO_LONG = re.compile(r"context.{0,40}(length|window|size)|(prompt|input).{0,40}too long", re.IGNORECASE | re.DOTALL)


class StreamEnded(Exception):
    """The stream ended before the answer did."""


class UnexpectedResponse(Exception):
    """The response is not what OpenAI's API specifies."""


class TooMuchText(Exception):
    """The server sends far more than the tokens that were requested."""


# What a server or the network can cause. Any other exception is a bug in this package.
SERVER_ERRORS = (openai.APIError, TimeoutError, StreamEnded, UnexpectedResponse, TooMuchText, LabError)


def whole_number(value: object, lowest: int, highest: int) -> int | None:
    """A server's number if it is a whole one in this range, else None."""
    return value if type(value) is int and lowest <= value <= highest else None


def is_too_long(error: Exception) -> bool:
    """Whether the server reports that the conversation exceeds the model's context."""
    code = error.code if isinstance(error, openai.APIError) else None
    return code == "context_length_exceeded" or bool(TOO_LONG.search(str(error)))


def retry_after(error: openai.APIStatusError) -> float | None:
    """The pause in seconds that the server asks for (RFC 9110, section 10.2.3: seconds or a date)."""
    value = error.response.headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,6}", value, re.ASCII):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class UnknownModel(LabError):
    """The server does not have the model."""


def retry_delay(error: Exception, attempt: int, has_answered: bool = False) -> float | None:
    """Seconds until the next attempt; None if a retry is useless. `has_answered`: whether the model answered before."""
    backoff = FIRST_DELAY * 2 ** (attempt - 1)
    if has_answered and isinstance(error, UnknownModel | openai.NotFoundError):
        return backoff  # a replica that restarted: the page loads its adapters within seconds
    if isinstance(error, openai.APIStatusError):
        if error.status_code != 429 and error.status_code < 500:
            return None
        pause = retry_after(error)
        if pause is None:
            return backoff
        return pause if pause <= MAX_DELAY else None
    if isinstance(error, openai.APIConnectionError):
        return None if certificate_problem(error) or tls_problem(error) else backoff
    # Another replica may answer. Only once, because each attempt can take as long as the first one.
    again = attempt == 1 and isinstance(error, StreamEnded | TimeoutError | openai.APIError)
    return backoff if again else None


def unwrapped(error: Exception) -> Exception:
    """An error of a response, without the client's error around it."""
    return next((each for each in causes(error) if isinstance(each, UnexpectedResponse)), error)


def causes(error: Exception) -> list[BaseException]:
    """An error and what caused it, one after the other."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def certificate_problem(error: Exception) -> str:
    """Why the server's certificate was refused, in the words of OpenSSL; "" if it was not."""
    found = (each.verify_message for each in causes(error) if isinstance(each, ssl.SSLCertVerificationError))
    return shorten(next(found, "").rstrip("."), 200)


def tls_problem(error: Exception) -> bool:
    """Whether no encrypted connection came about, for another reason than the certificate."""
    return any(isinstance(each, ssl.SSLError) for each in causes(error)) and not certificate_problem(error)


def unknown_model(host: str, model: str, models: Sequence[str]) -> UnknownModel:
    """The error for a model that the server does not have; `models` are those that it lists."""
    names = [name for name in models if name != model]  # the server may have removed it after the list was read
    choices = ", ".join(names) or "none"
    return UnknownModel(f"{host} serves no model “{shorten(model)}”{nearest(model, names)}: choose one of {choices}.")


def refused_fields(error: Exception, fields: Iterable[str]) -> list[str]:
    """Which of these fields of the request the server says that it does not take."""
    bad = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
    return [field for field in fields if bad and field in str(error)]


@dataclass
class ErrorMessages:
    """Messages about the server at `host`.

    `silence` is the timeout in seconds until the first token, `pause` that between two tokens. `api_key` is removed
    from the server's text. `answered_at` is when the last answer ended (`time.time`), None if there was none yet.
    """

    host: str
    silence: float
    pause: float
    api_key: str | None
    answered_at: float | None = None

    def interrupted(self, error: Exception) -> LabError:
        """The message for an error after the first token."""
        match error:
            case TimeoutError():
                what = f"sent nothing for {self.pause:.0f} s"
            case UnexpectedResponse():
                what = "sent something else than OpenAI's API specifies"
            case TooMuchText():
                what = "sent more than the most tokens that were requested, and was stopped"
            case _:
                what = "ended the stream"
        return ServerUnavailable(
            f"{self.host} {what} in the middle of the answer: what came is kept, continue it or ask again."
        )

    def not_listed(self, error: Exception) -> LabError:
        """The message for an error while the list of models was read."""
        return self.unreachable() if isinstance(error, TimeoutError) else self.not_answered(error)

    def unreachable(self) -> LabError:
        """The message for a server that does not respond."""
        return ServerUnavailable(
            f"{self.host} can't be reached{self._last_answer()}: start it, or check the network and REMOTE_URL."
        )

    def not_answered(self, error: Exception) -> LabError:
        """The message for an error before the first token."""
        match error:
            case LabError():
                return error
            case UnexpectedResponse() | TooMuchText():
                return LabError(
                    f"{self.host} did not answer as OpenAI's API specifies: REMOTE_URL may lead to a web page or to "
                    "another program, check its host, port and path."
                )
            case openai.APIStatusError():
                kind = ServerUnavailable if error.status_code >= 500 else LabError
                return kind(self._status(error))
            case TimeoutError():
                return ServerUnavailable(
                    f"{self.host} sent nothing for {self.silence:.0f} s{self._last_answer()}: it is overloaded or "
                    "stuck, ask again later."
                )
            case openai.APIConnectionError():
                return self._not_connected(error)
        return ServerUnavailable(
            f"{self.host} ended the stream before it answered: the conversation may be too long for it. Shorten it, or "
            "look into the server's log."
        )

    def _not_connected(self, error: openai.APIConnectionError) -> LabError:
        if problem := certificate_problem(error):
            return LabError(
                f"The certificate of {self.host} is not accepted ({problem}): use the host name that it was made for, "
                "renew it, or set SSL_CERT_FILE to the file of your own authority."
            )
        if tls_problem(error):
            return LabError(f"{self.host} does not use TLS: check the port in REMOTE_URL, or begin it with http://.")
        return self.unreachable()

    def _last_answer(self) -> str:
        """When the last answer ended, as " (its last answer ended at 14:03 UTC)"; "" if there was none."""
        if self.answered_at is None:
            return ""
        return f" (its last answer ended at {time.strftime('%H:%M UTC', time.gmtime(self.answered_at))})"

    def _status(self, error: openai.APIStatusError) -> str:
        status = error.status_code
        if status in (401, 403):
            return f"{self.host} refuses the key (status {status}): set REMOTE_API_KEY to a valid one."
        if status == 404:
            return f"{self.host} has no OpenAI API at this address (status 404): check the path in REMOTE_URL."
        if status == 429:
            pause = retry_after(error)
            when = f"in {pause:.0f} s" if pause else "in a minute"
            return f"{self.host} has too many requests (status 429): ask again {when}."
        if status >= 500:
            return (
                f"{self.host} has an internal error (status {status}){self._last_answer()}: ask again later, or look "
                "into its log."
            )
        if is_too_long(error):
            return f"The question is too long for the model at {self.host}. Shorten it."
        reason = self._reason(error)
        return f"{self.host} refuses the request (status {status}{reason}): change the question or its settings."

    def _reason(self, error: openai.APIStatusError) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        reason = str(body.get("message") or "")
        if self.api_key:
            reason = reason.replace(self.api_key, "…")
        return f", {shorten(reason, 200).rstrip('.')}" if reason else ""
