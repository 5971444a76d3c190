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
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.isolation.child_process import Call, ChildProcess
from inference.engines.isolation.crashes import Crashes
from inference.engines.isolation.messages import arguments_to_json
from inference.errors import LabError
from inference.metrics import count_crash
from inference.settings import PROJECT

ATTEMPTS = 3  # of an answer whose child crashes before its first text
MAX_CHILDREN = 3  # beyond, idle ones end
POLL = 0.05  # seconds between two checks of `cancelled`
IN_MEMORY_TIMEOUT = 1.0  # seconds
CLOSE_TIMEOUT = 20.0  # seconds
# What the child may read from its start: downloaded models, and those of the project and of its runs. A model elsewhere
# starts another child.
READABLE = (str(Path(constants.HF_HUB_CACHE)), str(PROJECT / "adapters"), str(PROJECT / "runs"))
CRASH_SIGNALS = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


class InnocentCrash(LabError):
    """The child crashed, and another model's files did it."""


class IsolatedEngine:
    """Runs the engine `name` in a child process. `options` are the arguments of its constructor; without any, the
    engine is created from the environment."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name, self._options = name, options
        self._child: ChildProcess | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._crashes = Crashes()
        self._children: list[ChildProcess] = []  # each reads other folders; `_child` is the one asked last

    def stream(
        self, model: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`. If another answer crashes the child before this one has any text, this
        one starts again by itself."""
        if not self._children:
            yield Chunk(waiting="loading")
        begun = False
        for attempt in range(ATTEMPTS):
            try:
                for chunk in self._stream_once(model, messages, sampling, cancelled):
                    begun = begun or bool(chunk.text)
                    yield chunk
                return
            except InnocentCrash as error:
                if begun or attempt == ATTEMPTS - 1:
                    raise LabError(str(error)) from error

    def _stream_once(
        self, model: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
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
            if not ended:
                self._send(child, call, "close")
            self._end_call(child, call)

    def score(self, model: ModelFiles, messages: Sequence[Message], answer: str, strength: float = 1.0) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        return self._call("score", model, list(messages), answer, strength)

    def in_memory(self, model: ModelFiles) -> bool:
        """Whether the model is loaded. Also False if the child is too busy to answer."""
        readers = [child for child in self._children if not child.ended and can_read(child, model)]
        if not readers or readers[0].silent_seconds > IN_MEMORY_TIMEOUT:
            return False
        try:
            return self._call("in_memory", model, timeout=IN_MEMORY_TIMEOUT)
        except (LabError, queue.Empty):
            return False

    def close(self) -> None:
        """End the child processes. Unfinished answers end with an error message."""
        with self._lock:
            children, self._children, self._child = self._children, [], None
        for child in children:
            if not child.ended:
                call = self._send_call(child, None, "close", ())
                with suppress(queue.Empty):  # the process is killed anyway
                    call.events.get(timeout=CLOSE_TIMEOUT)
            child.kill()

    def _start_call(self, method: str, *arguments: Any) -> tuple[ChildProcess, Call]:
        model = arguments[0]
        runs = model if method in ("stream", "score") else None
        if runs and (refusal := self._crashes.refusal(runs)):
            raise LabError(refusal)
        with self._lock:
            child = self._child = self._child_for(model)
            return child, self._send_call(child, runs, method, arguments)

    def _send_call(self, child: ChildProcess, runs: ModelFiles | None, method: str, arguments: tuple[Any, ...]) -> Call:
        call = Call(next(self._numbers), runs)
        child.calls[call.number] = call
        with suppress(OSError):  # `_child_ended` reports the error
            child.send(call.number, "call", method, arguments_to_json(method, arguments))
        return call

    def _child_for(self, model: ModelFiles) -> ChildProcess:
        """The first child that can read the model's files, else a new one."""
        self._children = [child for child in self._children if not child.ended]
        if reader := next((child for child in self._children if can_read(child, model)), None):
            return reader
        idle = [child for child in self._children if not child.calls]
        for child in idle[: max(0, len(self._children) + 1 - MAX_CHILDREN)]:
            self._children.remove(child)
            child.kill()
        with suppress(OSError):
            Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        folders = {str(path.parent if path.suffix else path) for path in real_paths(model)}
        # Landlock knows folders that exist: one that is made later starts another child.
        readable = [path for path in sorted({*READABLE, *folders}) if Path(path).exists()]
        self._children.append(ChildProcess(self.name, self._options, readable, self._child_ended))
        return self._children[-1]

    def _call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Call a method that returns one value. Raises queue.Empty after `timeout` seconds."""
        child, call = self._start_call(method, *arguments)
        try:
            return self._result(*call.events.get(timeout=timeout))
        finally:
            self._end_call(child, call)

    def _end_call(self, child: ChildProcess, call: Call) -> None:
        """Forget a call."""
        with self._lock:
            child.calls.pop(call.number, None)

    def _send(self, child: ChildProcess, call: Call, message: str) -> None:
        with suppress(OSError):  # `_child_ended` reports the error
            child.send(call.number, message)

    def _result(self, kind: str, value: Any) -> Any:
        if kind == "error":
            raise LabError(value)
        if kind == "crash":
            raise InnocentCrash(value)
        return value

    def _child_ended(self, child: ChildProcess, reason: str) -> None:
        """Report the end of the child to all callers, and remember the files that may have caused it."""
        with self._lock:
            calls = list(child.calls.values())
            suspects = set(child.loading) or {call.model for call in calls if call.model}
        crashed = -(child.exit_code or 0) in CRASH_SIGNALS or "did not respond" in reason
        if crashed or child in self._children:  # it was not closed on purpose
            count_crash("engine")
        message = ""
        for model in suspects:
            message = self._crash_message(model, reason)
        if crashed and suspects:
            self._crashes.add(suspects, certain=bool(child.loading), message=message)
        for call in calls:
            if call.model and suspects == {call.model}:
                call.events.put(("error", self._crash_message(call.model, reason)))
            else:  # another model may have done it: an answer without text starts again by itself
                call.events.put(("crash", f"{self.name} crashed during another answer ({reason}): ask again."))

    def _crash_message(self, model: ModelFiles, reason: str) -> str:
        name = model.base.name
        return f"{self.name} crashed while it ran {name} ({reason}): choose another model, or ask again."


def real_paths(model: ModelFiles) -> list[Path]:
    """Where the model's files are, links resolved: that is what the kernel checks."""
    return [path for given in (model.base, model.adapter) if given is not None for path in (given, given.resolve())]


def can_read(child: ChildProcess, model: ModelFiles) -> bool:
    """Whether the child may open the model's files."""
    folders = [Path(folder) for folder in child.readable]
    return all(any(path.is_relative_to(folder) for folder in folders) for path in real_paths(model))
