"""How the page is operated: `/healthz` and `/metrics`, a guard around all event handlers, and an orderly end."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import gradio as gr
import psutil
from gradio.utils import get_function_params
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inference import metrics
from inference.arena.votes_hub import VotesPush
from inference.errors import LabError, hide_paths, visitor_message
from inference.lab import Lab

FINISH_SECONDS = 10.0  # that running answers have after SIGTERM
STOP_SECONDS = 1.0  # that they have to stop after that
DELIVERY_SECONDS = 0.5  # until the last words of an answer have left
PUSH_SECONDS = 10.0  # for the last push of votes
CLOSE_SECONDS = 3.0  # for engines to close; what still runs then is killed
EXIT_SECONDS = 3.0  # for Python to end; a thread that is stuck doesn't hold it up for longer
POLL_SECONDS = 0.1
WRONG_VALUES = "The values of this call cannot be read: compare them with the page's API description."
UNREADABLE = "This request cannot be read: check its body and its headers."


class Page(gr.Blocks):
    """Gradio's page with three differences, two of them for programs that call its API.

    Gradio checks the values of a call before a handler sees them. Here a wrong one is one sentence to the caller, and
    no traceback in the log. Gradio keeps a copy of the page's configuration (80 KB) for each of the last 10,000 calls
    that have no session of their own. Here it is dropped when the call has ended. Gradio creates a new component for
    each output that an update skips, which takes half of the time of an answer's updates. Here none is created.
    """

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """See `gradio.Blocks.process_api`."""
        generating = False
        try:
            output = await super().process_api(*arguments, **options)
            generating = bool(output.get("is_generating"))
            return output
        finally:
            session = options.get("session_hash")
            if session and session == options.get("event_id") and not generating:
                self.state_holder.session_data.pop(session, None)
                self.state_holder.time_last_used.pop(session, None)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """See `gradio.Blocks.postprocess_data`."""
        outputs: list[Any] = list(block_fn.outputs)
        kept: list[int] = []
        if isinstance(predictions, dict) and predictions and all(key in outputs for key in predictions):
            predictions = [predictions.get(output, gr.skip()) for output in outputs]
        if isinstance(predictions, list | tuple) and len(predictions) == len(outputs) > 1:
            kept = [i for i, value in enumerate(predictions) if not (isinstance(value, dict) and value == gr.skip())]
        if not kept:
            return await super().postprocess_data(block_fn, predictions, state)
        changing = copy.copy(block_fn)
        changing.outputs = [outputs[i] for i in kept]
        values = [predictions[i] for i in kept]
        done = await super().postprocess_data(changing, values if len(values) > 1 else values[0], state)
        by_place = dict(zip(kept, done, strict=True))
        return [by_place.get(i, gr.skip()) for i in range(len(outputs))]

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> Any:
        """See `gradio.Blocks.preprocess_data`. Values that a call leaves out at its end have their defaults, so that
        a program works when its endpoint gets another parameter. Raises gr.Error."""
        if len(inputs) < len(block_fn.inputs):
            left_out = get_function_params(block_fn.fn)[len(inputs) : len(block_fn.inputs)]
            inputs = inputs + [default for _, has_default, default, _ in left_out if has_default]
        try:
            return await super().preprocess_data(block_fn, inputs, *arguments, **options)
        except gr.Error as error:
            raise gr.Error(hide_paths(str(error.message)), print_exception=False) from None
        except Exception as error:
            metrics.count_refusal("values")
            raise gr.Error(WRONG_VALUES, print_exception=False) from error


class UnreadableRequests:
    """ASGI middleware: a request that cannot be read gets status 400 and one sentence, and no traceback in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            if started or scope["type"] != "http":
                raise
            metrics.count_refusal("request")
            await JSONResponse({"detail": UNREADABLE}, 400)(scope, receive, send)


def operator_routes(page: gr.Blocks, lab: Lab) -> list[Route]:
    """`/healthz` and `/metrics`, for the application that the page is launched with."""

    async def health(_: Request) -> Response:
        ready = not lab.shutdown.begun
        return JSONResponse({"status": "ready" if ready else "ending"}, 200 if ready else 503)

    def show_metrics(_: Request) -> Response:
        return Response(generate_latest(metrics.REGISTRY), media_type=CONTENT_TYPE_LATEST)

    metrics.QUEUE.set_function(lambda: len(page._queue))
    return [Route("/healthz", health), Route("/metrics", show_metrics)]


def guard_handlers(page: gr.Blocks) -> None:
    """Turn every exception of an event handler into one sentence without paths. An unexpected one is logged."""
    for handler in page.fns.values():
        if callable(handler.fn) and not inspect.iscoroutinefunction(handler.fn):
            handler.fn = guarded(handler.fn)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The event handler `function`, whose exceptions are all gr.Error."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*arguments: Any, **named: Any) -> Iterator[Any]:
            with one_sentence():
                yield from function(*arguments, **named)

        return generate

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with one_sentence():
            return function(*arguments, **named)

    return call


@contextmanager
def one_sentence() -> Iterator[None]:
    """Raise gr.Error with a sentence for visitors instead of any other exception."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        if not isinstance(error, LabError):
            log_unexpected(error)
        raise gr.Error(visitor_message(error), print_exception=False) from error


def log_unexpected(error: Exception) -> None:
    """Log where an exception was raised. Its message may hold a visitor's text and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    stack = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
    metrics.log_event("unexpected error", logging.ERROR, error=type(error).__name__, stack=stack)


class EndSignal:
    """Waits for SIGTERM or SIGINT. Create it in the main thread. A second signal ends the process at once."""

    def __init__(self) -> None:
        self._received = threading.Event()
        self._process = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def wait(self) -> None:
        """Return when a signal has arrived."""
        while not self._received.wait(POLL_SECONDS):  # on Windows, a wait without end would hide Ctrl-C
            pass

    def _receive(self, number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != self._process:  # a process that ZeroGPU forked from this one
            os.kill(os.getpid(), number)
        self._received.set()


def end(page: gr.Blocks, lab: Lab, votes_push: VotesPush | None) -> None:
    """Refuse new questions, let running answers finish, push the votes, and end all child processes."""
    lab.shutdown.begin()
    metrics.log_event("ending", running=lab.shutdown.running)
    if votes_push is not None:
        votes_push.push_now()  # in case that this process is killed before it has finished
    started = time.monotonic()
    while (lab.shutdown.running or len(page._queue)) and time.monotonic() - started < FINISH_SECONDS:
        time.sleep(POLL_SECONDS)
    lab.shutdown.stop_work()
    lab.shutdown.wait(STOP_SECONDS)
    time.sleep(DELIVERY_SECONDS)
    if votes_push is not None:
        votes_push.finish(PUSH_SECONDS)
    closing = threading.Thread(target=lab.close, daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    end_children()
    page.close(verbose=False)
    exit_timer = threading.Timer(EXIT_SECONDS, os._exit, [0])
    exit_timer.daemon = True
    exit_timer.start()
    metrics.log_event("ended", seconds=round(time.monotonic() - started, 3))


def end_children() -> None:
    """Kill the processes that this one started and that still run."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
