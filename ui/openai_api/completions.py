"""`/v1/chat/completions` and `/v1/models`: the models of the page, answering as OpenAI's API specifies."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from inference.catalog import Entry
from inference.engines import Chunk, Figures, Message
from inference.errors import LabError
from inference.lab import REFRESH, Lab
from inference.shutdown import RESTARTING, Restarting
from inference.visitors.limits import Visitor, VisitorLimits
from ui.openai_api.answer_stream import LiveResponse, Steps, while_connected
from ui.openai_api.api_errors import ApiError, as_api_error
from ui.openai_api.chat_values import ChatValues, read_chat
from ui.openai_api.request_body import read_json, sender_of
from ui.openai_api.request_queue import RequestQueue

START_SECONDS = 3.0  # for a stream's first text. Until then an error has a status; afterwards it is an event
PING_SECONDS = 10.0  # between two comments in a stream that has no text yet, so that no proxy closes it


@dataclass(frozen=True)
class Completion:
    """What the JSON of one answer is made of."""

    values: ChatValues
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, figures: Figures) -> dict[str, Any]:
        """The complete answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": figures.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(figures)}

    def part(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        """A part of a streamed answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        counts = {"usage": None} if self.values.include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **counts}

    def counts(self, figures: Figures) -> dict[str, Any]:
        """The last part of a streamed answer whose usage was asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage(figures)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.values.model}


def usage(figures: Figures) -> dict[str, Any]:
    """The token counts of an answer."""
    return {
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "total_tokens": figures.prompt_tokens + figures.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": figures.cached_tokens},
    }


class Chat:
    """The endpoints. `pool` has the threads in which answers are computed."""

    def __init__(self, lab: Lab, limits: VisitorLimits, queue: RequestQueue, pool: ThreadPoolExecutor) -> None:
        self._lab, self._limits, self._queue, self._pool = lab, limits, queue, pool

    async def list_models(self, _: Request) -> Response:
        """List the models of the dropdown."""

        def entries() -> list[Entry]:
            self._lab.refresh(at_most_every=REFRESH)
            return self._lab.list_models()

        models = await self._in_thread(entries)
        return JSONResponse({"object": "list", "data": [model_json(entry.id, entry) for entry in models]})

    async def show_model(self, request: Request) -> Response:
        """One model, by its id or by user/repo on the Hub."""
        name = request.path_params["model"]
        return JSONResponse(model_json(name, await self._entry(name)))

    async def complete(self, request: Request) -> Response:
        """Answer the last message."""
        values, messages = read_chat(await read_json(request))
        entry = await self._entry(values.model)
        chunks = while_connected(request, self._chunks(sender_of(request), entry, values, messages))
        completion = Completion(values)
        if values.stream:
            head = await self._first_chunks(chunks)
            return LiveResponse(self._events(completion, head, chunks), chunks, "text/event-stream")
        text, figures = "", None
        async for chunk in chunks:
            text, figures = text + (chunk.text if chunk else ""), chunk.figures if chunk else figures
        return JSONResponse(completion.whole(text, ended(figures)))

    async def _chunks(
        self, visitor: Visitor, entry: Entry, values: ChatValues, messages: list[Message]
    ) -> AsyncGenerator[Chunk]:
        """The answer, within the limits that the page has. Raises LabError and ApiError."""

        def answer(stopped: Callable[[], bool]) -> Generator[Chunk]:
            yield from self._lab.ask(entry, messages, values.sampling, stopped)

        with self._limits.admit(visitor):
            async with self._queue.slot():
                async for chunk in Steps(self._pool, answer).run():
                    yield chunk

    async def _first_chunks(self, chunks: AsyncGenerator[Chunk | None]) -> list[Chunk]:
        """The chunks of an answer until its first text, or those of the first START_SECONDS."""
        head: list[Chunk] = []
        started = time.monotonic()
        async for chunk in chunks:
            head += [chunk] if chunk else []
            if (chunk and (chunk.text or chunk.figures)) or time.monotonic() - started > START_SECONDS:
                break
        return head

    async def _events(
        self, completion: Completion, head: list[Chunk], rest: AsyncGenerator[Chunk | None]
    ) -> AsyncGenerator[str]:
        """The answer as server-sent events. An error is the last one."""
        yield event(completion.part({"role": "assistant", "content": ""}))
        try:
            for chunk in head:
                for text in self._parts(completion, chunk):
                    yield text
            pinged = time.monotonic()
            async for later in rest:
                if later:
                    for text in self._parts(completion, later):
                        yield text
                elif time.monotonic() - pinged > PING_SECONDS:
                    pinged = time.monotonic()
                    yield ": waiting\n\n"
        except Exception as error:
            yield event(as_api_error(error).body)
            return
        yield "data: [DONE]\n\n"

    def _parts(self, completion: Completion, chunk: Chunk) -> list[str]:
        """The events of one chunk. What the answer waits for is a comment, which clients skip."""
        parts = [f": {chunk.waiting}\n\n"] if chunk.waiting else []
        if chunk.text:
            parts.append(event(completion.part({"content": chunk.text})))
        if chunk.figures:
            parts.append(event(completion.part({}, ended(chunk.figures).finish_reason)))
            if completion.values.include_usage:
                parts.append(event(completion.counts(chunk.figures)))
        return parts

    async def _entry(self, model: str) -> Entry:
        """The model of that id. Raises ApiError if there is none."""
        try:
            return await self._in_thread(self._lab.entry, model)
        except LabError as error:
            raise ApiError(404, str(error), "model_not_found", "model") from error

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)


def model_json(name: str, entry: Entry) -> dict[str, Any]:
    """A model in OpenAI's form. Models have no date here."""
    return {"id": name, "object": "model", "created": 0, "owned_by": entry.base or "llama-finetuning-lab"}


def event(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def ended(figures: Figures | None) -> Figures:
    """The figures of an answer that was not stopped by the end of the process. Raises Restarting if it was."""
    if figures is None or figures.finish_reason == "cancelled":
        raise Restarting(RESTARTING)
    return figures
