"""One question on its way through an engine that runs models in this process, and its answer as a stream of chunks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from inference.engines import ActiveAdapter, AnswerScore, Chunk, Figures, Message, ModelFiles, Sampling
from inference.engines.chat_template.template import fit_to_context
from inference.engines.text_stream import TextStream
from inference.errors import LabError

POLL = 0.05  # seconds between two checks of `cancelled`
WAITING = "waiting for another answer to end"
DELIVERY_SECONDS = (
    0.02  # tokens of so short a time reach the visitor's thread together: waking it costs more than a token
)


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length", "cancelled"]


# The end of a request. Before it, the scheduler's thread reports a status ("loading"), an `EncodeJob`, and `Pieces`.
Outcome = Finished | AnswerScore | BaseException


@dataclass(frozen=True)
class Pieces:
    """The bytes of some tokens, how many they are, and when the last one was there (`perf_counter`)."""

    data: bytes
    tokens: int
    at: float


@dataclass(frozen=True)
class EncodeJob:
    """What the visitor's thread computes for the scheduler: the prompt's token ids. A long history costs its visitor
    time, and nobody else. `done` tells the scheduler."""

    encode: Callable[[Sequence[Message]], list[int]]
    is_end: Callable[[int], bool]
    n_ctx: int
    done: Callable[[], None]


@dataclass(eq=False)
class Request:
    """A question to answer, or an `answer` to score. The scheduler's thread puts what happens into `events`.

    Attributes:
        answer: the answer to score; None if one is to be generated.
        cancelled: set when nobody reads the answer any more.
        tokens: token ids of the prompt and the answer so far. A request for a score has the whole answer from the
            beginning; it starts at index `answer_start`.
        generated: the number of generated tokens.
        log_likelihood, greedy: the score of the part that was decoded, see `AnswerScore`.
    """

    files: ModelFiles
    messages: Sequence[Message]
    sampling: Sampling
    answer: str | None = None
    started_at: float = field(default_factory=time.perf_counter)
    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    reported: str = ""
    encoding: bool = False
    tokens: list[int] = field(default_factory=list)
    answer_start: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    dropped_turns: int = 0
    context_tokens: int | None = None
    generated: int = 0
    log_likelihood: float = 0.0
    greedy: bool = True
    _undelivered: list[bytes] = field(default_factory=list)
    _delivered_at: float = 0.0

    @property
    def adapter(self) -> ActiveAdapter | None:
        """The adapter of the request's passes; None for the bare base, which is also an adapter of strength 0."""
        if self.files.adapter is None or self.sampling.strength == 0:
            return None
        return ActiveAdapter(self.files.adapter, self.sampling.strength)

    @property
    def scoring(self) -> bool:
        """Whether a given answer is scored."""
        return self.answer is not None

    def start_encoding(self, job: EncodeJob) -> None:
        """Give the visitor's thread its job; until it is done the request waits."""
        self.encoding = True
        self.events.put(job)

    def run(self, job: EncodeJob) -> None:
        """In the visitor's thread: set `tokens`. Raises LabError if the text does not fit."""
        try:
            self._encode(job.encode, job.is_end, job.n_ctx)
        except BaseException:
            self.cancelled.set()
            raise
        finally:
            self.encoding = False
            job.done()

    def _encode(
        self, encode: Callable[[Sequence[Message]], list[int]], is_end: Callable[[int], bool], n_ctx: int
    ) -> None:
        """Set `tokens`, at most `n_ctx`. `encode` gives a conversation's token ids, and `is_end` finds end-of-turn
        tokens."""
        self.context_tokens = n_ctx
        if self.answer is None:
            reserved = min(self.sampling.max_tokens, n_ctx // 4)  # tokens that are left for the answer at least
            self.tokens, self.dropped_turns = fit_to_context(
                self.messages, lambda messages: encode_prompt(messages, encode, is_end), n_ctx - reserved
            )
        else:
            self.tokens, self.answer_start = encode_with_answer(self.messages, self.answer, encode, is_end)
            if len(self.tokens) > n_ctx:
                raise LabError(
                    f"The answer to score is too long: with its question it has {len(self.tokens):,} tokens and this "
                    f"model reads at most {n_ctx:,}. Shorten it."
                )
        self.prompt_tokens = len(self.tokens)

    def add_score(self, log_likelihood: float, greedy: bool) -> None:
        """Add the score of the next part of the answer."""
        self.log_likelihood += log_likelihood
        self.greedy = self.greedy and greedy

    def add_piece(self, piece: bytes) -> None:
        """Report the next token's bytes: the first one at once, later ones together with their neighbours."""
        self._undelivered.append(piece)
        now = time.perf_counter()
        if now - self._delivered_at >= DELIVERY_SECONDS:
            self._deliver(now)

    def finish(self, outcome: Outcome) -> None:
        """Report the outcome, after all tokens."""
        if self._undelivered:
            self._deliver(time.perf_counter())
        self.events.put(outcome)

    def _deliver(self, now: float) -> None:
        self.events.put(Pieces(b"".join(self._undelivered), len(self._undelivered), now))
        self._undelivered.clear()
        self._delivered_at = now

    def report(self, status: str) -> None:
        """Report what the answer waits for, if that is news."""
        if status != self.reported:
            self.reported = status
            self.events.put(status)

    def report_waiting(self) -> None:
        """Report that the question has to wait for other answers."""
        self.report(WAITING)

    def score(self) -> AnswerScore:
        """The score of the answer, after all of it was decoded."""
        return AnswerScore(self.log_likelihood, len(self.tokens) - self.answer_start, self.greedy)


def encode_prompt(
    messages: Sequence[Message], encode: Callable[[Sequence[Message]], list[int]], is_end: Callable[[int], bool]
) -> list[int]:
    """The token ids of a conversation up to the next token of its answer. If the last message is the assistant's, the
    answer continues it. Raises LabError if the chat template does not allow that."""
    if messages[-1]["role"] != "assistant":
        return encode(messages)
    tokens, _ = encode_with_answer(messages[:-1], messages[-1]["content"], encode, is_end)
    return tokens[:-1]  # all but the end of the turn


def encode_with_answer(
    messages: Sequence[Message],
    answer: str,
    encode: Callable[[Sequence[Message]], list[int]],
    is_end: Callable[[int], bool],
) -> tuple[list[int], int]:
    """The token ids of a conversation and its answer up to the end-of-turn token, and the index of the answer's first
    token. If the last token of the prompt merges with the answer's first letters, the merged token is the first.

    Raises LabError if the chat template writes no end-of-turn token.
    """
    prompt = encode(messages)
    tokens = encode([*messages, Message(role="assistant", content=answer)])
    start = next((i for i, (a, b) in enumerate(zip(prompt, tokens, strict=False)) if a != b), len(prompt))
    end = next((i for i in range(start, len(tokens)) if is_end(tokens[i])), None)
    if end is None or start == 0:
        raise LabError(
            "Answers of this model cannot be scored or continued, because its chat template writes no end-of-turn "
            "token after an answer: use another model."
        )
    return tokens[: end + 1], start


def chunks(request: Request, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
    """Read a request's events as the chunks of its answer. However the reading ends, `request.cancelled` is set."""
    text, received = TextStream(request.sampling.stop), 0
    first_at = latest_at = 0.0
    reason: Literal["stop", "length", "cancelled"] = "cancelled"
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
            if isinstance(event, EncodeJob):
                request.run(event)
            if isinstance(event, str):
                yield Chunk(waiting=event)
            elif isinstance(event, Pieces):
                latest_at = event.at
                first_at, received = first_at or latest_at, received + event.tokens
                if complete := text.feed(event.data):
                    yield Chunk(text=complete)
                if text.stopped:
                    reason = "stop"
                    break
    finally:
        request.cancelled.set()
    if rest := text.finish():
        yield Chunk(text=rest)
    yield Chunk(
        figures=Figures(
            prompt_tokens=request.prompt_tokens,
            cached_tokens=request.cached_tokens,
            completion_tokens=received,
            seconds_to_first_token=first_at - request.started_at if received else None,
            tokens_per_second=(received - 1) / (latest_at - first_at) if received > 1 else None,
            finish_reason=reason,
            dropped_turns=request.dropped_turns,
            context_tokens=request.context_tokens,
        )
    )
