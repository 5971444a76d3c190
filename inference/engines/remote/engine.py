"""The remote engine: any OpenAI-compatible server (vLLM, llama.cpp, a router before many of them), asked by `openai`.

A model is the name under which the server serves it, LoRA adapters included. The server reads the chat template, the
tokens and the memory; this module streams, stops, tries again before the first token, and says in a sentence what went
wrong. All requests run on one event loop in a thread: there, stopping a question closes its connection at once, also
while the server is silent. The API key goes into the request's header and nowhere else: what is raised holds neither
the client's exceptions nor the server's words about the key.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import openai

from inference.catalog import shorten
from inference.engines import AnswerScore, Chunk, Figures, Message, Sampling
from inference.engines.text_stream import TextStream
from inference.errors import LabError
from inference.validation import nearest

CONNECT = 5.0  # seconds until a server counts as unreachable
SILENCE = 60.0  # seconds without a token until an answer counts as stalled
LISTING = 10.0  # seconds that a list of models may take
LISTING_AGE = 5.0  # seconds for which it is believed
ATTEMPTS = 4  # of one question, before its first token
FIRST_DELAY = 0.5  # seconds before the second attempt; doubles with each
LONGEST_DELAY = 20.0  # seconds; a server that wants a longer pause (Retry-After) is given up on
POLL = 0.05  # seconds between two looks at whether the visitor pressed stop
TOO_LONG = re.compile(r"context.{0,40}(length|window|size)|(prompt|input).{0,40}too long", re.IGNORECASE | re.DOTALL)

T = TypeVar("T")


class BrokenOff(Exception):
    """The stream ended before the answer did."""


class NotUnderstood(Exception):
    """An answer that is not what OpenAI's API says."""


# What a server and the way to it can do wrong; anything else is a mistake of ours.
FAULTS = (openai.APIError, TimeoutError, BrokenOff, NotUnderstood, LabError)


@dataclass
class Question:
    """One question on its way: what is asked, and what has come back.

    `dropped` counts the oldest turns left out, `pieces` the parts with text that came, `shown` those handed on.
    """

    model: str
    messages: list[Message]
    sampling: Sampling
    started: float = field(default_factory=time.perf_counter)
    wants_usage: bool = True
    dropped: int = 0
    served: list[str] = field(default_factory=list)
    inbox: queue.SimpleQueue[str | Chunk | LabError | None] = field(default_factory=queue.SimpleQueue)
    pieces: int = 0
    shown: int = 0
    first: float | None = None
    latest: float | None = None
    finish: Literal["stop", "length"] | None = None
    usage: Any = None

    def request(self) -> dict[str, Any]:
        """The arguments of `chat.completions.create`."""
        sampling = self.sampling
        request = {
            "model": self.model,
            "messages": self.messages,
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if sampling.seed is not None:
            request["seed"] = sampling.seed
        if self.wants_usage:
            request["stream_options"] = {"include_usage": True}
        return request

    def adapt(self, error: Exception) -> bool:
        """Whether the question has been changed to what the server can take: no usage, or fewer turns."""
        # llama_cpp.server breaks off without a word where the context is too short.
        silent = isinstance(error, BrokenOff) and not self.pieces
        if not silent and not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
            return False
        if self.wants_usage and "stream_options" in str(error):
            self.wants_usage = False
            return True
        system = self.messages[:1] if self.messages[0]["role"] == "system" else []
        turns = self.messages[len(system) :]
        questions = [i for i, turn in enumerate(turns) if i and turn["role"] == "user"]
        if not questions or not (silent or is_too_long(error)):
            return False
        dropped = (len(questions) + 1) // 2 if silent else 1  # a few times only where it may be something else
        self.messages = [*system, *turns[questions[dropped - 1] :]]
        self.dropped += dropped
        return True

    def take(self, part: Any) -> None:
        """Note one part of the stream and pass its text on. Raises NotUnderstood for what is no such part."""
        try:
            self.usage = part.usage or self.usage
            for choice in part.choices[:1]:
                if choice.finish_reason:
                    self.finish = "length" if choice.finish_reason == "length" else "stop"
                if choice.delta is not None and choice.delta.content:
                    self.latest = time.perf_counter()
                    self.first = self.first or self.latest
                    self.pieces += 1
                    self.inbox.put(choice.delta.content)
        except (AttributeError, TypeError) as error:
            raise NotUnderstood from error

    def figures(self, cancelled: bool) -> Figures:
        """What the answer cost; where the server doesn't tell, a piece of the stream counts as a token."""
        details = getattr(self.usage, "prompt_tokens_details", None)
        counted = getattr(self.usage, "completion_tokens", None)
        count = counted or self.pieces
        seconds = self.latest - self.first if self.first else 0
        return Figures(
            prompt_tokens=getattr(self.usage, "prompt_tokens", None) or 0,
            cached_tokens=getattr(details, "cached_tokens", None) or 0,
            completion_tokens=counted or self.shown,
            seconds_to_first_token=self.first - self.started if self.first else None,
            tokens_per_second=(count - 1) / seconds if count > 1 and seconds else None,
            finish_reason="cancelled" if cancelled else self.finish or "stop",
            dropped_turns=self.dropped,
        )


class Engine:
    """Asks the OpenAI-compatible server at `url` ("https://host/v1"; a bare host gets the /v1).

    `silence` is how many seconds may pass without a token. Raises LabError for a URL or a key that can't be one.
    """

    def __init__(self, url: str, api_key: str | None = None, silence: float = SILENCE) -> None:
        self._url, self.host = check_url(url)
        self._key = check_key(api_key)
        self._silence = silence
        self._listing: tuple[float, list[str] | LabError] | None = None
        self._listing_lock = threading.Lock()
        self._lock = threading.Lock()  # held while the next two come and go
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls) -> Engine:
        """The server that REMOTE_URL names, with REMOTE_API_KEY where that is set."""
        url = os.environ.get("REMOTE_URL")
        if not url:
            raise LabError("REMOTE_URL is not set: set it to an OpenAI-compatible server, such as https://host/v1.")
        return cls(url, os.environ.get("REMOTE_API_KEY"))

    def models(self) -> list[str]:
        """The names that the server serves, asked at most every few seconds. Raises LabError where it is away."""
        with self._listing_lock:
            if self._listing is None or time.monotonic() - self._listing[0] > LISTING_AGE:
                listing = self._submit(self._list()).result()
            else:
                listing = self._listing[1]
        if isinstance(listing, LabError):
            raise LabError(str(listing))  # a new one: each raise adds to an exception's traceback
        return list(listing)

    def state(self) -> Literal["away", "ready"]:
        """Whether the server answers; a look at what `models` last found, CONNECT or LISTING seconds at worst."""
        try:
            self.models()
        except LabError:
            return "away"
        return "ready"

    def in_memory(self, model: str) -> bool:
        """Whether the server was last seen to serve it: nothing is loaded for a question then."""
        listing = self._listing[1] if self._listing else []
        return isinstance(listing, list) and model in listing

    def close(self) -> None:
        """Stop the answers that are under way and close the connections; the next question opens them again."""
        with self._lock:
            if self._loop is None:
                return
            asyncio.run_coroutine_threadsafe(self._stop_all(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._listing = None

    def stream(
        self, model: str, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`; `model` is a served name. Where an answer breaks off, what came of it
        is yielded before LabError is raised."""
        yield Chunk(waiting="thinking")
        question = Question(model, list(messages), sampling)
        text = TextStream()
        reader = self._submit(self._answer(question))
        failure = None
        try:
            while not (stopped := cancelled()):
                try:
                    item = question.inbox.get(timeout=POLL)
                except queue.Empty:
                    if stopped := reader.cancelled():  # by `close`
                        break
                    if reader.done():
                        reader.result()  # raises what is a mistake of ours
                    continue
                if isinstance(item, Chunk):
                    yield item
                elif isinstance(item, str):
                    question.shown += 1
                    # Half of a surrogate pair is no text; what can't be encoded becomes a question mark.
                    if shown := text.feed(item.encode("utf-8", "replace")):
                        yield Chunk(text=shown)
                else:
                    failure = item
                    break
        finally:
            reader.cancel()  # closes the connection, and with it the server's work
        if rest := text.finish():
            yield Chunk(text=rest)
        if failure:
            raise failure
        yield Chunk(figures=question.figures(stopped))

    def score(self, model: str, messages: Sequence[Message], answer: str) -> AnswerScore:
        """Raises LabError: OpenAI's chat API tells no probabilities of a given answer."""
        raise LabError(f"{self.host} can't score answers: run the model here, with ENGINE=llamacpp or pytorch.")

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        with self._lock:
            if self._loop is None:
                self._client = openai.AsyncOpenAI(
                    base_url=self._url,
                    # Without one, the client would send the key of OPENAI_API_KEY, which belongs to another server.
                    api_key=self._key or "none",
                    max_retries=0,  # retried here, where the visitor can see and stop it
                    timeout=openai.Timeout(None, connect=CONNECT),  # silence is timed here: comments don't break it
                )
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="remote engine", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _stop_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    async def _list(self) -> list[str] | LabError:
        try:
            async with asyncio.timeout(LISTING):
                return await self._names()
        except FAULTS as error:
            failure = self._sentence(error)
        self._listing = (time.monotonic(), failure)
        return failure

    async def _names(self) -> list[str]:
        try:
            page = await self._client.models.list()
            names = [model.id for model in page.data]
        except (ValueError, AttributeError, TypeError) as error:
            raise NotUnderstood from error
        self._listing = (time.monotonic(), names)
        return names

    async def _answer(self, question: Question) -> None:
        """Ask until an answer begins; puts text, waiting chunks, and at the end None or a LabError into the inbox."""
        attempt = 1
        while True:
            try:
                await self._attempt(question)
                question.inbox.put(None)
                return
            except FAULTS as error:
                if isinstance(error, openai.APIConnectionError):
                    self._listing = None  # it is away: `state` shall not say otherwise
                if question.adapt(error):
                    continue
                delay = None if question.pieces or attempt == ATTEMPTS else retry_delay(error, attempt)
                if delay is None:
                    question.inbox.put(self._sentence(error, question))
                    return
            attempt += 1
            reason = f"{self.host} is away or busy, asking again in {max(1, round(delay))} s"
            question.inbox.put(Chunk(waiting=reason))
            await asyncio.sleep(delay)

    async def _attempt(self, question: Question) -> None:
        async with asyncio.timeout(self._silence) as patience:
            # Some servers (llama_cpp.server) answer to a name they don't know with another model.
            question.served = self._remembered() or await self._names()
            if question.model not in question.served:
                raise LabError(self._unknown(question))
            try:
                stream = await self._client.chat.completions.create(**question.request())
                async with stream:
                    async for part in stream:
                        patience.reschedule(asyncio.get_running_loop().time() + self._silence)
                        question.take(part)
            except json.JSONDecodeError as error:
                raise NotUnderstood from error
        if question.finish is None:
            events = stream.response.headers.get("content-type", "").startswith("text/event-stream")
            raise BrokenOff if events else NotUnderstood

    def _remembered(self) -> list[str]:
        """The served names, where they were asked for a moment ago."""
        when, listing = self._listing or (0.0, [])
        return listing if isinstance(listing, list) and time.monotonic() - when <= LISTING_AGE else []

    def _unknown(self, question: Question) -> str:
        model = question.model
        names = [name for name in question.served if name != model]  # a server may have dropped it since
        served = ", ".join(names) or "none"
        return f"{self.host} serves no model “{shorten(model)}”{nearest(model, names)}: choose one of {served}."

    def _sentence(self, error: Exception, question: Question | None = None) -> LabError:
        """What went wrong, for a person. Nothing of the error itself is kept but a bad request's reason."""
        host, silence = self.host, f"said nothing for {self._silence:.0f} s"
        if question and question.pieces:
            how = silence if isinstance(error, TimeoutError) else "broke off"
            return LabError(f"{host} {how} in the middle of the answer: what came is kept, ask again.")
        match error:
            case LabError():
                return error
            case NotUnderstood():
                return LabError(f"{host} answered with something else than OpenAI's API: check REMOTE_URL.")
            case openai.NotFoundError() if question and question.served:
                return LabError(self._unknown(question))
            case openai.APIStatusError():
                return LabError(self._status_sentence(error))
            case TimeoutError() if question:
                return LabError(f"{host} {silence}: it is overloaded or stuck, ask again later.")
            case openai.APIConnectionError() | TimeoutError():
                return LabError(f"{host} can't be reached: start it, or check the network and REMOTE_URL.")
        reason = "the conversation may be too long for it. Shorten it, or look into the server's log"
        return LabError(f"{host} gave up before it answered: {reason}.")

    def _status_sentence(self, error: openai.APIStatusError) -> str:
        status = error.status_code
        if status in (401, 403):
            return f"{self.host} refuses the key (status {status}): set REMOTE_API_KEY to one that it takes."
        if status == 404:
            return f"{self.host} has no OpenAI API at this address (status 404): check the path in REMOTE_URL."
        if status == 429:
            pause = retry_after(error)
            when = f"in {pause:.0f} s" if pause else "in a minute"
            return f"{self.host} has too many requests (status 429): ask again {when}."
        if status >= 500:
            return f"{self.host} has a fault of its own (status {status}): ask again later, or look into its log."
        if is_too_long(error):
            return f"The question is too long for the model at {self.host}. Shorten it."
        reason = self._reason(error)
        return f"{self.host} refuses the request (status {status}{reason}): change the question or its settings."

    def _reason(self, error: openai.APIStatusError) -> str:
        body = error.body if isinstance(error.body, dict) else {}
        reason = str(body.get("message") or "")
        if self._key:
            reason = reason.replace(self._key, "…")
        return f", {shorten(reason, 200).rstrip('.')}" if reason else ""


def check_url(url: str) -> tuple[str, str]:
    """The base URL, with /v1 where it has no path, and the host to name in sentences. Raises LabError."""
    try:
        parts = urlsplit(url.strip())
        host = parts.hostname and (f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname)
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise LabError("REMOTE_URL is not a web address: set it to one such as https://host/v1.")
    if parts.username or parts.password or parts.query or parts.fragment:
        # Addresses are logged on their way, keys must not be.
        raise LabError("REMOTE_URL holds more than an address: put the key into REMOTE_API_KEY, and no “?” or “@”.")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}", host


def check_key(api_key: str | None) -> str | None:
    """The key without the space around it. One that is no header would be quoted in the HTTP library's errors."""
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LabError("REMOTE_API_KEY holds characters that no key has: copy it again, in one line.")
    return key or None


def is_too_long(error: openai.APIError) -> bool:
    """Whether the server says that the conversation exceeds the model's context."""
    return error.code == "context_length_exceeded" or bool(TOO_LONG.search(str(error)))


def retry_after(error: openai.APIStatusError) -> float | None:
    """The pause in seconds that the server asks for (RFC 9110, section 10.2.3: seconds or a date)."""
    value = error.response.headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def retry_delay(error: Exception, attempt: int) -> float | None:
    """Seconds until the next attempt, None where none is worth it."""
    backoff = FIRST_DELAY * 2 ** (attempt - 1)
    if isinstance(error, openai.APIStatusError):
        if error.status_code != 429 and error.status_code < 500:
            return None
        pause = retry_after(error)
        return backoff if pause is None else pause if pause <= LONGEST_DELAY else None
    return backoff if isinstance(error, openai.APIConnectionError) else None
