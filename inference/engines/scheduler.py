"""The scheduler of an engine that runs models in this process: one thread admits requests and steps the batches.

A runtime computes in one thread at a time, so only the scheduler's thread touches a model. Visitors' threads submit
requests and read their events. How the requests of one base share its forward passes is up to each engine's batch.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from inference.engines import AnswerScore, Chunk, Message, ModelFiles, Sampling
from inference.engines.request import WAITING, EncodeJob, Finished, Outcome, Request, chunks
from inference.errors import LabError

POLL = 0.05  # seconds
ENCODE_GRACE = 0.003  # seconds that answers under way wait for a prompt; an ordinary one takes a millisecond

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
        self._ready = False  # something has happened that the thread waits for
        self._step_started: float | None = None

    @abstractmethod
    def _batches_in_memory(self) -> Sequence[Batch[R]]:
        """The batch of each loaded base."""

    @abstractmethod
    def _admit(self, request: R) -> bool:
        """Start to answer a request. Returns False if it has to wait: for other answers to end, for its model, or for
        its tokens (`Request.start_encoding`)."""

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

    def score(self, files: ModelFiles, messages: Sequence[Message], answer: str, strength: float = 1.0) -> AnswerScore:
        """See `inference.engines.Engine.score`."""
        sampling = Sampling(temperature=0, max_tokens=0, strength=strength)
        request = self.request_type(files, list(messages), sampling, answer)
        self._submit(request)
        try:
            while not isinstance(event := request.events.get(), AnswerScore):
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, EncodeJob):
                    request.run(event)
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
            self._ready = True
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._run, name=type(self).__module__, daemon=True)
                self._thread.start()
            self._changed.notify()

    def seconds_in_step(self) -> float:
        """How long the thread has been computing without a pause (s): a step of a healthy engine takes far less than
        a minute."""
        started = self._step_started
        return time.monotonic() - started if started is not None else 0.0

    def _wake(self) -> None:
        """Make the thread look at the waiting requests again."""
        with self._changed:
            self._ready = True
            self._changed.notify()

    def _run(self) -> None:
        while self._wait_for_work():
            self._step_started = time.monotonic()
            try:
                self._admit_waiting()
                self._step_batches()
            except Exception as error:  # this thread must never end while others wait for it
                self._reset(error)
            self._step_started = None
        self._reset(LabError("The engine was closed before the answer ended: ask again."))
        with self._changed:
            self._thread, self._closing = None, False

    def _wait_for_work(self) -> bool:
        """Wait until there is something to compute. Returns False if the engine is being closed."""
        with self._changed:
            if any(request.encoding for request in self._waiting) and not self._ready:
                self._changed.wait(ENCODE_GRACE)  # questions that arrive together share their passes
            while not (self._closing or self._ready or self._admitted()):
                # Waiting requests are looked at now and then, because they can be cancelled.
                if not self._changed.wait(POLL if self._waiting else None):
                    break
            self._ready = False
            return not self._closing

    def _reset(self, error: Exception) -> None:
        """Fail all requests and free the memory."""
        with self._changed:
            requests = [*self._waiting, *self._admitted()]
            self._waiting.clear()
        self._fail(requests, error)
        self._unload_all()

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
                self._end(request, Finished("cancelled"))
            elif request.encoding:
                continue  # its visitor's thread is at work; it holds up nobody
            else:
                try:
                    if blocking := next((each for each in delayed if self._blocks(each, request)), None):
                        request.report(blocking.reported or WAITING)
                        delayed.append(request)
                        continue
                    if not self._admit(request):
                        if not request.encoding:
                            delayed.append(request)
                        continue
                except Exception as error:  # reported to the visitor who asked
                    self._fail([request], error)
            with self._changed:
                if request in self._waiting:
                    self._waiting.remove(request)

    def _blocks(self, earlier: R, later: R) -> bool:
        """Whether a request has to wait because an earlier one waits. Otherwise the earlier one could starve."""
        return True

    def _fail(self, requests: Collection[R], error: Exception) -> None:
        for request in list(requests):
            self._end(request, error)

    def _end(self, request: R, outcome: Outcome) -> None:
        """Finish a request. An error on the way is reported in place of the outcome, and does not stop the others."""
        try:
            self._finish(request, outcome)
        except Exception as error:
            request.finish(outcome if isinstance(outcome, BaseException) else error)
