"""Questions on their way through an engine that runs models in this process: what a question is, the one thread that
answers them all, and how what it tells becomes the chunks of an answer.

A runtime computes in one thread at a time, so all that touches a model happens in `Worker`'s thread; visitors' threads
put questions in and take events out. How questions share a model's passes is each engine's to say.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from inference.engines import AnswerScore, Chunk, Figures, Message, ModelFiles, Sampling
from inference.engines.chat_template.template import fit
from inference.engines.text_stream import TextStream
from inference.errors import LabError

POLL = 0.05  # seconds between two looks at whether the visitor pressed stop
WAITING = "waiting for another answer to end"


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Request:
    """A question on its way, or an `answer` that is to be scored. The worker puts into `events` what is being waited
    for (str), each token (its bytes and when it came), why the answer ended (Finished), the score (AnswerScore) or an error.

    `tokens` are those of the prompt; of a score, those of prompt and answer, which begins at `scored_from`.
    """

    files: ModelFiles
    messages: Sequence[Message]
    sampling: Sampling
    answer: str | None = None
    started: float = field(default_factory=time.perf_counter)
    events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)
    unwanted: threading.Event = field(default_factory=threading.Event)
    told_to_wait: bool = False
    tokens: list[int] = field(default_factory=list)
    scored_from: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    dropped_turns: int = 0
    count: int = 0  # of the answer's tokens so far
    log_likelihood: float = 0.0
    greedy: bool = True

    def encode(
        self, encode: Callable[[Sequence[Message]], list[int]], is_end: Callable[[int], bool], n_ctx: int
    ) -> None:
        """Fill in the tokens, at most `n_ctx`. Raises LabError where they are more."""
        if self.answer is None:
            room = min(self.sampling.max_tokens, n_ctx // 4)  # at least so much is left for the answer
            self.tokens, self.dropped_turns = fit(self.messages, encode, n_ctx - room)
        else:
            self.tokens, self.scored_from = with_answer(self.messages, self.answer, encode, is_end)
            if len(self.tokens) > n_ctx:
                raise LabError(
                    f"The answer to score is too long: with its question it has {len(self.tokens):,} tokens and this "
                    f"model reads at most {n_ctx:,}. Shorten it."
                )
        self.prompt_tokens = len(self.tokens)

    def add(self, log_likelihood: float, greedy: bool) -> None:
        """Count a part of the answer that is scored."""
        self.log_likelihood += log_likelihood
        self.greedy = self.greedy and greedy

    def tell_to_wait(self) -> None:
        """Say once that it isn't this question's turn."""
        if not self.told_to_wait:
            self.told_to_wait = True
            self.events.put(WAITING)

    def scored(self) -> AnswerScore:
        """The score of the answer, when it has been read to its end."""
        return AnswerScore(self.log_likelihood, len(self.tokens) - self.scored_from, self.greedy)


def with_answer(
    messages: Sequence[Message],
    answer: str,
    encode: Callable[[Sequence[Message]], list[int]],
    is_end: Callable[[int], bool],
) -> tuple[list[int], int]:
    """The tokens of a conversation and its answer, to the end-of-turn token that closes it, and where the answer
    begins. Where its first letters merge with the prompt's last token, it begins with the merged one."""
    prompt = encode(messages)
    whole = encode([*messages, Message(role="assistant", content=answer)])
    begin = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(prompt))
    close = next((i for i in range(begin, len(whole)) if is_end(whole[i])), None)
    if close is None or begin == 0:
        raise LabError("The model's chat template closes no answer: its answers can't be scored, use another model.")
    return whole[: close + 1], begin


def chunks(request: Request, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
    """An answer as the visitor's thread takes it. Whatever ends the reading, the worker learns of it."""
    text, count, first, latest, reason = TextStream(), 0, None, None, "cancelled"
    try:
        while not cancelled():
            try:
                event = request.events.get(timeout=POLL)
            except queue.Empty:
                continue
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Finished):
                reason = event.reason
                break
            if isinstance(event, str):
                yield Chunk(waiting=event)
                continue
            piece, latest = event
            first, count = first or latest, count + 1
            if shown := text.feed(piece):
                yield Chunk(text=shown)
    finally:
        request.unwanted.set()
    if rest := text.finish():
        yield Chunk(text=rest)
    yield Chunk(
        figures=Figures(
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            completion_tokens=count,
            seconds_to_first_token=first - request.started if first else None,
            tokens_per_second=(count - 1) / (latest - first) if count > 1 else None,
            finish_reason=reason,
            dropped_turns=request.dropped_turns,
        )
    )


class Base(Protocol):
    """A base in memory."""

    answering: Sequence[Request]

    def step(self) -> None:
        """A little more for each question that it is answering."""


class Worker(ABC):
    """Takes questions in and answers them in one thread, which starts with the first and ends with `close`."""

    request_type: type[Request] = Request

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False

    @abstractmethod
    def _loaded(self) -> Sequence[Base]:
        """The bases that are in memory."""

    @abstractmethod
    def _begin(self, request: Request) -> bool:
        """Begin to answer; False where it has to wait for other answers to end."""

    @abstractmethod
    def _end(self, request: Request, outcome: Finished | AnswerScore | BaseException) -> None:
        """Tell a question, begun or not, how it ended and free what it held."""

    @abstractmethod
    def _drop(self) -> None:
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
            request.unwanted.set()

    def close(self) -> None:
        """Free the memory. Answers that are being given end."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify()
        if thread:
            thread.join()

    def _submit(self, request: Request) -> None:
        with self._changed:
            if self._closing and self._thread:
                raise LabError("The engine is being closed: ask again in a moment.")
            self._waiting.append(request)
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._serve, name=type(self).__module__, daemon=True)
                self._thread.start()
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._answering()):
                    self._changed.wait()
                if self._closing:
                    break
            self._admit()
            for base in self._loaded():
                if base.answering:
                    try:
                        base.step()
                    except Exception as error:  # told to everyone whose answer it ended
                        self._fail(base.answering, error)
        with self._changed:
            closed = LabError("The engine was closed before the answer ended: ask again.")
            self._fail([*self._waiting, *self._answering()], closed)
            self._waiting.clear()
            self._drop()
            self._thread, self._closing = None, False

    def _answering(self) -> list[Request]:
        return [request for base in self._loaded() for request in base.answering]

    def _admit(self) -> None:
        """Begin the waiting questions, in their order; those that can't begin yet are told so."""
        with self._changed:
            waiting = list(self._waiting)
        passed: list[Request] = []
        for request in waiting:
            if request.unwanted.is_set():
                self._end(request, Finished("cancelled"))
            else:
                try:
                    if any(self._holds_up(earlier, request) for earlier in passed) or not self._begin(request):
                        request.tell_to_wait()
                        passed.append(request)
                        continue
                except Exception as error:  # told to the one whose question it was
                    self._fail([request], error)
            with self._changed:
                self._waiting.remove(request)

    def _holds_up(self, earlier: Request, later: Request) -> bool:
        """Whether a question that has to wait keeps a later one waiting: else it might wait forever."""
        return True

    def _fail(self, requests: Collection[Request], error: Exception) -> None:
        for request in list(requests):
            self._end(request, error)
