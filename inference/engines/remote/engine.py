"""The remote engine: models on any OpenAI-compatible server, such as vLLM, llama.cpp's, or a router to several.

A model is a name that the server lists; LoRA adapters have names of their own. The server applies the chat template.
This engine streams, cancels, and retries before the first token. The API key goes into the request's header and nowhere
else: a raised error holds neither the client's exceptions nor the key.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress

import openai

from inference.engines import AnswerScore, Chunk, Message, Sampling
from inference.engines.remote.address import check_key, check_url
from inference.engines.remote.chat_completion import CONTINUE, ChatCompletion
from inference.engines.remote.listing import ModelListing, read_listing
from inference.engines.remote.openai_client import Client
from inference.engines.remote.scoring import FIELDS, NoScores, score_answer
from inference.engines.remote.server_errors import (
    MAX_ATTEMPTS,
    SERVER_ERRORS,
    ErrorMessages,
    StreamEnded,
    UnexpectedResponse,
    is_too_long,
    refused_fields,
    retry_delay,
    unknown_model,
    unwrapped,
)
from inference.engines.remote.transcription import transcribe
from inference.engines.text_stream import TextStream
from inference.errors import LabError
from inference.settings import read_integer

SILENCE = 60  # seconds until the first token of an answer, REMOTE_TIMEOUT
PAUSE = 20.0  # seconds between two tokens until an answer counts as stalled
LIST_TIMEOUT = 10.0  # seconds for the list of models
POLL = 0.05  # seconds between two checks of `cancelled`
CLOSED = "The engine was closed before the server answered: ask again."
STRENGTH = "A remote server has no setting for an adapter's strength: set the strength to 1."


class Engine:
    """Asks the OpenAI-compatible server at `url` ("https://host/v1"; /v1 is added to a bare host).

    `silence` is the timeout in seconds until the first token; between two tokens it is at most PAUSE. Raises LabError
    if the URL or the key is not valid.
    """

    def __init__(self, url: str, api_key: str | None = None, silence: float = SILENCE) -> None:
        url, self.host = check_url(url)
        key = check_key(api_key)
        self._client = Client(url, key)
        self._silence, self._pause = silence, min(silence, PAUSE)
        self._messages = ErrorMessages(self.host, silence, self._pause, key)
        self._listing: ModelListing | None = None
        self._answered: set[str] = set()  # the models that have answered
        self._listing_lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> Engine:
        """The server at REMOTE_URL, with the key REMOTE_API_KEY and the timeout REMOTE_TIMEOUT if they are set. Raises
        LabError without a URL."""
        url = os.environ.get("REMOTE_URL")
        if not url:
            raise LabError("REMOTE_URL is not set: set it to an OpenAI-compatible server, such as https://host/v1.")
        return cls(url, os.environ.get("REMOTE_API_KEY"), read_integer("REMOTE_TIMEOUT", 1, 3600) or SILENCE)

    def models(self) -> list[str]:
        """The names of the server's models, a few seconds old at most. Raises LabError if the server is unreachable."""
        return list(self._recent_listing().models)

    def whisper(self) -> str | None:
        """The name of the server's Whisper, or None. Raises LabError if the server is unreachable."""
        return self._recent_listing().whisper

    def _recent_listing(self) -> ModelListing:
        with self._listing_lock:
            listing = self._listing
            if listing is None or not listing.recent:
                try:
                    listing = self._client.submit(self._list_models).result()
                except CancelledError:
                    listing = ModelListing(error=LabError(CLOSED))
        if listing.error:
            raise type(listing.error)(str(listing.error))  # a new one: each raise adds to an exception's traceback
        return listing

    def in_memory(self, model: str) -> bool:
        """Whether the server listed the model when it was last asked."""
        return self._listing is not None and model in self._listing.models

    def close(self) -> None:
        """Cancel all answers and close the connections. The next question opens them again."""
        if self._client.close():
            self._listing = None

    def stream(
        self, model: str, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`. If the server ends the stream in the middle of an answer, all text
        that came is yielded before LabError is raised."""
        if sampling.strength != 1:
            raise LabError(STRENGTH)
        yield Chunk(waiting="thinking")
        completion, text = ChatCompletion(model, list(messages), sampling), TextStream(sampling.stop)
        request = self._client.submit(lambda client: self._answer(client, completion))
        error = None
        try:
            while not (stopped := cancelled()):
                try:
                    item = completion.inbox.get(timeout=POLL)
                except queue.Empty:
                    if stopped := request.cancelled():  # by `close`
                        break
                    if request.done():
                        request.result()  # raises an unexpected exception
                    continue
                if isinstance(item, Chunk):
                    yield item
                elif isinstance(item, str):
                    completion.shown += 1
                    # Half of a surrogate pair cannot be encoded and becomes a question mark.
                    if complete := text.feed(item.encode("utf-8", "replace")):
                        yield Chunk(text=complete)
                    if text.stopped:  # not every server knows stop strings
                        break
                else:
                    error = item
                    break
        finally:
            request.cancel()  # closes the connection, so that the server stops, too
        if rest := text.finish():
            yield Chunk(text=rest)
        if error:
            raise error
        yield Chunk(figures=completion.figures(stopped))

    def score(self, model: str, messages: Sequence[Message], answer: str, strength: float = 1.0) -> AnswerScore:
        """See `inference.engines.Engine.score`. Raises LabError if the server does not say how likely a token is."""
        if strength != 1:
            raise LabError(STRENGTH)
        request = self._client.submit(lambda client: self._score(client, model, messages, answer))
        try:
            outcome = request.result()
        except CancelledError:
            outcome = LabError(CLOSED)
        if isinstance(outcome, LabError):
            raise outcome
        return outcome

    def transcribe(
        self, model: str, recording: bytes, language: str | None, cancelled: Callable[[], bool]
    ) -> tuple[str, float] | None:
        """The text of a recording, transcribed by the server's Whisper `model`, and its length in seconds; None once
        `cancelled`. `language` is a code such as "en"; None detects it. Raises LabError."""
        request = self._client.submit(lambda client: self._transcribe(client, model, recording, language))
        try:
            while not cancelled():
                with suppress(FutureTimeout):
                    outcome = request.result(timeout=POLL)
                    if isinstance(outcome, LabError):
                        raise outcome
                    return outcome
        except CancelledError:  # by `close`
            pass
        finally:
            request.cancel()
        return None

    async def _transcribe(
        self, client: openai.AsyncOpenAI, model: str, recording: bytes, language: str | None
    ) -> tuple[str, float] | LabError:
        try:
            async with asyncio.timeout(self._silence):
                return await transcribe(client, model, recording, language)
        except openai.BadRequestError:
            return LabError(f"{self.host} can't read this recording: record again, or send a WAV or FLAC file.")
        except SERVER_ERRORS as error:
            return self._messages.not_answered(unwrapped(error))

    async def _list_models(self, client: openai.AsyncOpenAI) -> ModelListing:
        """Read the list of models within LIST_TIMEOUT. Errors become part of the listing."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT):
                self._listing = await read_listing(client)
        except SERVER_ERRORS as error:
            self._listing = ModelListing(error=self._messages.not_listed(unwrapped(error)))
        return self._listing

    async def _listed(self, client: openai.AsyncOpenAI, model: str) -> ModelListing:
        """The list of models, with `model` in it. Raises LabError if it is not."""
        # Some servers (llama_cpp.server) answer with another model if they do not know the name.
        listing = self._listing
        if listing is None or not listing.recent or model not in listing.models:
            listing = None
            with suppress(TimeoutError):
                async with asyncio.timeout(LIST_TIMEOUT):
                    listing = self._listing = await read_listing(client)
        if listing is None:
            raise self._messages.unreachable()
        if model not in listing.models:
            raise unknown_model(self.host, model, listing.models)
        return listing

    async def _answer(self, client: openai.AsyncOpenAI, completion: ChatCompletion) -> None:
        """Request the answer, with retries before its first token. Puts text and status chunks into the inbox, and None
        or a LabError at the end."""
        attempt = 1
        while True:
            try:
                await self._attempt(client, completion)
                self._messages.answered_at = time.time()
                self._answered.add(completion.model)
                completion.inbox.put(None)
                return
            except SERVER_ERRORS as wrapped:
                error = unwrapped(wrapped)
                if isinstance(error, openai.APIConnectionError):
                    self._listing = None  # the server is unreachable, so the list of models is outdated
                if completion.adapt(error):
                    continue
                delay = retry_delay(error, attempt, completion.model in self._answered)
                if delay is None or completion.received or attempt == MAX_ATTEMPTS:
                    completion.inbox.put(self._translate(error, completion))
                    return
            attempt += 1
            status = f"{self.host} is unreachable or busy, trying again in {max(1, round(delay))} s"
            completion.inbox.put(Chunk(waiting=status))
            await asyncio.sleep(delay)

    async def _attempt(self, client: openai.AsyncOpenAI, completion: ChatCompletion) -> None:
        """Request the answer once. Raises one of SERVER_ERRORS."""
        async with asyncio.timeout(self._silence) as timeout:
            listing = await self._listed(client, completion.model)
            completion.models = list(listing.models)
            completion.context = listing.contexts.get(completion.model)
            try:
                stream = await client.chat.completions.create(**completion.arguments())
                async with stream:
                    async for event in stream:
                        if completion.receive(event):
                            timeout.reschedule(asyncio.get_running_loop().time() + self._pause)
            except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
                raise UnexpectedResponse from error
        if completion.finish is None:
            is_stream = stream.response.headers.get("content-type", "").startswith("text/event-stream")
            raise StreamEnded if is_stream else UnexpectedResponse

    async def _score(
        self, client: openai.AsyncOpenAI, model: str, messages: Sequence[Message], answer: str
    ) -> AnswerScore | LabError:
        """The score, or what went wrong: an exception that is raised here would hold the client's."""
        patient = client.with_options(max_retries=MAX_ATTEMPTS - 1)
        try:
            async with asyncio.timeout(self._silence):
                await self._listed(client, model)
            scored = await score_answer(patient, model, messages, answer, self._silence)
            self._messages.answered_at = time.time()
            return scored
        except NoScores:
            pass
        except SERVER_ERRORS as wrapped:
            error = unwrapped(wrapped)
            if isinstance(error, openai.APIStatusError) and is_too_long(error):
                return LabError(f"The answer to score is too long for the model at {self.host}. Shorten it.")
            if not refused_fields(error, FIELDS):
                return self._messages.not_answered(error)
        return LabError(
            f"{self.host} can't score answers, because it gives no probabilities of given tokens as vLLM does: run the "
            "model here with ENGINE=llamacpp or pytorch."
        )

    def _translate(self, error: Exception, completion: ChatCompletion) -> LabError:
        if completion.received:
            return self._messages.interrupted(error)
        if isinstance(error, openai.NotFoundError) and completion.models:
            return unknown_model(self.host, completion.model, completion.models)
        if completion.continues and refused_fields(error, CONTINUE):
            return LabError(f"{self.host} can't continue an answer: ask again.")
        if refused := refused_fields(error, completion.beyond_openai):
            return LabError(f"{self.host} does not take {refused[0]}: set it to its default.")
        return self._messages.not_answered(error)
