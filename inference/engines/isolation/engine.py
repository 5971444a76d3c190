"""The engine that the page sees: forwards each call to an engine in a child process.

A chunk is sent when it is asked for. So an answer that is stopped or no longer read ends as it does in one process. If
the child crashes, each caller gets an error message and the next question starts another child.
"""

from __future__ import annotations

import itertools
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.isolation.child_process import Call, ChildProcess
from inference.errors import LabError

POLL = 0.05  # seconds between two checks of `cancelled`
IN_MEMORY_TIMEOUT = 1.0  # seconds
CLOSE_TIMEOUT = 20.0  # seconds
CRASH_SIGNALS = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


class IsolatedEngine:
    """Runs the engine `name` in a child process. `options` are the arguments of its constructor; without any, the
    engine is created from the environment."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self._options = name, options
        self._child: ChildProcess | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._crashes: dict[tuple, str] = {}  # file versions that crashed a child, and the error message

    def stream(
        self, model: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`."""
        if self._child is None:
            yield Chunk(waiting="loading")
        child, call = self._start_call("stream", model, list(messages), sampling)
        stopped = ended = False
        try:
            while not ended:
                try:
                    kind, value = call.events.get(timeout=POLL)
                except queue.Empty:
                    kind, value = "nothing", None
                if not stopped and cancelled():
                    stopped = True
                    self._send(child, call, "cancel")
                if kind == "chunk":
                    yield value
                    if not stopped and cancelled():
                        stopped = True
                        self._send(child, call, "cancel")
                    self._send(child, call, "next")
                elif kind != "nothing":
                    ended = True
                    self._result(kind, value)
        finally:
            child.calls.pop(call.number, None)
            if not ended:
                self._send(child, call, "close")

    def score(self, model: ModelFiles, messages: Sequence[Message], answer: str) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        return self._call("score", model, list(messages), answer)

    def in_memory(self, model: ModelFiles) -> bool:
        """Whether the model is loaded. Also False if the child is too busy to answer."""
        if self._child is None or self._child.ended:
            return False
        try:
            return self._call("in_memory", model, timeout=IN_MEMORY_TIMEOUT)
        except (LabError, queue.Empty):
            return False

    def close(self) -> None:
        """End the child process. Unfinished answers end with an error message."""
        child = self._child
        if child is None or child.ended:
            return
        with suppress(LabError, queue.Empty):  # the process is killed anyway
            self._call("close", timeout=CLOSE_TIMEOUT)
        with self._lock:
            self._child = None
        child.kill()

    def _start_call(self, method: str, *arguments: Any) -> tuple[ChildProcess, Call]:
        model = None if method in ("in_memory", "close") else arguments[0]  # these two run no model
        if model and (crash := self._crashes.get(file_versions(model))):
            raise LabError(crash)
        with self._lock:
            if self._child is None or self._child.ended:
                self._child = ChildProcess(self.name, self._options, self._child_ended)
            child, call = self._child, Call(next(self._numbers), model)
            child.calls[call.number] = call
        with suppress(OSError):  # `_child_ended` reports the error
            child.send(call.number, "call", method, arguments)
        return child, call

    def _call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Call a method that returns one value. Raises queue.Empty after `timeout` seconds."""
        child, call = self._start_call(method, *arguments)
        try:
            return self._result(*call.events.get(timeout=timeout))
        finally:
            child.calls.pop(call.number, None)

    def _send(self, child: ChildProcess, call: Call, message: str) -> None:
        with suppress(OSError):  # `_child_ended` reports the error
            child.send(call.number, message)

    def _result(self, kind: str, value: Any) -> Any:
        if kind == "error":
            raise LabError(value)
        return value

    def _child_ended(self, child: ChildProcess, reason: str) -> None:
        """Report the end of the child to all callers. If only one model can have caused it, remember its files."""
        with self._lock:
            calls = list(child.calls.values())
            suspects = {child.loading} if child.loading else {call.model for call in calls if call.model}
            for call in calls:
                message = f"{self.name} crashed during another answer ({reason}): ask again."
                if call.model and call.model in suspects:
                    message = self._crash_message(call.model, reason)
                call.events.put(("error", message))
            if len(suspects) == 1 and -child.process.returncode in CRASH_SIGNALS:
                (suspect,) = suspects
                self._crashes[file_versions(suspect)] = self._crash_message(suspect, reason)

    def _crash_message(self, model: ModelFiles, reason: str) -> str:
        name = model.base.name
        return f"{self.name} crashed while it ran {name} ({reason}): choose another model, or ask again."


def file_versions(model: ModelFiles) -> tuple:
    """The model's paths, each with its modification time and size if it exists."""
    versions: list[tuple] = []
    for path in filter(None, (model.base, model.adapter)):
        if path.exists():
            stat = path.stat()
            versions.append((path, stat.st_mtime_ns, stat.st_size))
        else:
            versions.append((path,))
    return tuple(versions)
