"""The scheduler of an engine that runs models in this process: one thread admits requests and steps the batches.

A runtime computes in one thread at a time, so only the scheduler's thread touches a model. Visitors' threads submit
requests and read their events. How the requests of one base share its forward passes is up to each engine's batch.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.request import Finished, Outcome, Request, chunks
from inference.errors import LabError

R = TypeVar("R", bound=Request)
R_co = TypeVar("R_co", bound=Request, covariant=True)


class Batch(Protocol[R_co]):
    """A base in memory and the requests that it is answering."""

    @property
    def requests(self) -> Sequence[R_co]:
        """The admitted requests."""

    def step(self) -> None:
        """Compute a little for each request: its next token, or a part of its prompt."""


class Scheduler(ABC, Generic[R]):
    """Answers requests in one thread, which starts with the first request and ends with `close`."""

    request_type: type[R]

    def __init__(self) -> None:
        self._waiting: list[R] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    @abstractmethod
    def _batches_in_memory(self) -> Sequence[Batch[R]]:
        """The batch of each loaded base."""

    @abstractmethod
    def _admit(self, request: R) -> bool:
        """Start to answer a request. Returns False if it has to wait for other answers to end."""

    @abstractmethod
    def _finish(self, request: R, outcome: Outcome) -> None:
        """Report a request's outcome and free what it held. It may not have been admitted."""

    @abstractmethod
    def _unload_all(self) -> None:
        """Free the memory."""

    def stream(
        self, files: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`."""
        request = self.request_type(files, list(messages), sampling)
        self._submit(request)
        yield from chunks(request, cancelled)

    def score(self, files: ModelFiles, messages: Sequence[Message], answer: str) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        request = self.request_type(files, list(messages), Sampling(temperature=0, max_tokens=0), answer)
        self._submit(request)
        try:
            while not isinstance(event := request.events.get(), AnswerScore):
                if isinstance(event, BaseException):
                    raise event
            return event
        finally:
            request.cancelled.set()

    def close(self) -> None:
        """Free the memory. Unfinished answers end with an error message."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify()
        if thread:
            thread.join()

    def _submit(self, request: R) -> None:
        with self._changed:
            if self._closing and self._thread:
                raise LabError("The engine is being closed: ask again in a moment.")
            self._waiting.append(request)
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name=type(self).__module__, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._admitted()):
                    self._changed.wait()
                if self._closing:
                    break
            self._admit_waiting()
            self._step_batches()
        with self._changed:
            closed = LabError("The engine was closed before the answer ended: ask again.")
            self._fail([*self._waiting, *self._admitted()], closed)
            self._waiting.clear()
            self._unload_all()
            self._thread, self._closing = None, False

    def _step_batches(self) -> None:
        # A method of its own: a local variable of `_run` would keep a base in memory that is being replaced.
        for batch in self._batches_in_memory():
            if batch.requests:
                try:
                    batch.step()
                except Exception as error:  # reported to each visitor whose answer ends with it
                    self._fail(batch.requests, error)

    def _admitted(self) -> list[R]:
        return [request for batch in self._batches_in_memory() for request in batch.requests]

    def _admit_waiting(self) -> None:
        """Admit the waiting requests in their order. Each one that has to wait reports it once."""
        with self._changed:
            waiting = list(self._waiting)
        delayed: list[R] = []
        for request in waiting:
            if request.cancelled.is_set():
                self._finish(request, Finished("cancelled"))
            else:
                try:
                    if any(self._blocks(earlier, request) for earlier in delayed) or not self._admit(request):
                        request.report_waiting()
                        delayed.append(request)
                        continue
                except Exception as error:  # reported to the visitor who asked
                    self._fail([request], error)
            with self._changed:
                self._waiting.remove(request)

    def _blocks(self, earlier: R, later: R) -> bool:
        """Whether a request has to wait because an earlier one waits. Otherwise the earlier one could starve."""
        return True

    def _fail(self, requests: Collection[R], error: Exception) -> None:
        for request in list(requests):
            self._finish(request, error)
