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
        self._retired: list[ChildProcess] = []  # they finish their answers

    def stream(
        self, model: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`. If another answer crashes the child before this one has any text, this
        one starts again by itself."""
        if self._child is None:
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

    def score(self, model: ModelFiles, messages: Sequence[Message], answer: str) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        return self._call("score", model, list(messages), answer)

    def in_memory(self, model: ModelFiles) -> bool:
        """Whether the model is loaded. Also False if the child is too busy to answer."""
        child = self._child
        if child is None or child.ended or child.silent_seconds > IN_MEMORY_TIMEOUT or not can_read(child, model):
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
            self._child, retired, self._retired = None, self._retired, []
        for each in (child, *retired):
            each.kill()

    def _start_call(self, method: str, *arguments: Any) -> tuple[ChildProcess, Call]:
        model = None if method == "close" else arguments[0]
        runs = model if method in ("stream", "score") else None
        if runs and (refusal := self._crashes.refusal(runs)):
            raise LabError(refusal)
        with self._lock:
            child = self._child_for(model)
            call = Call(next(self._numbers), runs)
            child.calls[call.number] = call
        with suppress(OSError):  # `_child_ended` reports the error
            child.send(call.number, "call", method, arguments_to_json(method, arguments))
        return child, call

    def _child_for(self, model: ModelFiles | None) -> ChildProcess:
        """The child that can read the model's files. If the current one cannot, a new one takes its place; the current
        one finishes its answers."""
        child = self._child
        if child is not None and not child.ended and (model is None or can_read(child, model)):
            return child
        folders = {str(path.parent if path.suffix else path) for path in real_paths(model)} if model else set()
        known = child.readable if child is not None else frozenset()
        if child is not None and not child.ended:
            self._retired.append(child)
        with suppress(OSError):
            Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
        # Landlock knows folders that exist: one that is made later starts another child.
        readable = [path for path in sorted({*READABLE, *known, *folders}) if Path(path).exists()]
        self._child = ChildProcess(self.name, self._options, readable, self._child_ended)
        return self._child

    def _call(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Call a method that returns one value. Raises queue.Empty after `timeout` seconds."""
        child, call = self._start_call(method, *arguments)
        try:
            return self._result(*call.events.get(timeout=timeout))
        finally:
            self._end_call(child, call)

    def _end_call(self, child: ChildProcess, call: Call) -> None:
        """Forget a call; a retired child without calls ends."""
        with self._lock:
            child.calls.pop(call.number, None)
            retired = [each for each in self._retired if not each.calls]
            self._retired = [each for each in self._retired if each.calls]
        for each in retired:
            each.kill()

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
        if crashed or child is self._child:  # it was not closed on purpose
            count_crash("engine")
        message = ""
        for model in suspects:
            message = self._crash_message(model, reason)
        if crashed and suspects:
            self._crashes.add(suspects, certain=bool(child.loading), message=message)
        for call in calls:
            if call.model and call.model in suspects:
                call.events.put(("error", self._crash_message(call.model, reason)))
            else:
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
