"""Questions that arrive at random times, whether or not the ones before are answered, and how long each one waits.

A client that waits for an answer before it asks again hides the queue that its own waiting avoids. Here arrivals are a
Poisson process, and the wait for the first token counts from the arrival.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from inference.engines import Engine, Message, Sampling
from inference.errors import LabError

LIMIT = 2.0  # seconds to the first token, of which the 99th percentile stays below
PATIENCE = 20.0  # seconds from the last arrival until open answers are stopped
ENOUGH = 30  # questions of a step, for which a slow one takes up to three times as long
SAMPLING = Sampling(temperature=0, max_tokens=64)
TOO_LATE = 600.0  # seconds: the wait of a question without a first token, for percentiles


@dataclass(frozen=True)
class Question:
    """A conversation that ends in a question, and the model that answers: a name on a server, or files."""

    model: Any
    messages: list[Message]


@dataclass
class Asked:
    """What became of a question. Times are of `time.perf_counter`; `error` is empty if it was answered to its end."""

    due: float
    first: float | None = None
    ended: float = 0.0
    tokens: int = 0
    error: str = ""

    @property
    def wait(self) -> float:
        """Seconds from the arrival to the first token."""
        return self.first - self.due if self.first is not None else TOO_LATE


@dataclass
class Step:
    """The questions that arrived at one rate (questions/s)."""

    rate: float
    asked: list[Asked] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the 99th percentile stays below LIMIT."""
        return percentile([each.wait for each in self.asked], 99) <= LIMIT

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all answers, from the first arrival to the last end."""
        seconds = max(each.ended for each in self.asked) - min(each.due for each in self.asked)
        return sum(each.tokens for each in self.asked) / seconds


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of `values` (`share` from 0 to 100): the next higher one of the values themselves."""
    return float(np.percentile(values, share, method="higher"))


def answer(engine: Engine, question: Question, asked: Asked, stop: threading.Event) -> None:
    """Ask one question and record what becomes of it."""
    try:
        for chunk in engine.stream(question.model, question.messages, SAMPLING, stop.is_set):
            if chunk.text and asked.first is None:
                asked.first = time.perf_counter()
            if chunk.figures:
                asked.tokens = chunk.figures.completion_tokens
                asked.error = "stopped" if chunk.figures.finish_reason == "cancelled" else ""
    except LabError as error:
        asked.error = str(error)
    asked.ended = time.perf_counter()


def arrive(
    engine: Engine, questions: list[Question], rate: float, seconds: float, at_half: Callable[[], None] | None = None
) -> tuple[list[Asked], float]:
    """Ask for `seconds` at `rate` questions/s, and wait for the answers. Returns the questions, and when `at_half` was
    called in the middle (`time.perf_counter`)."""
    rng, stop = random.Random(round(rate * 1000)), threading.Event()
    started = time.perf_counter()
    half, due, all_asked = started + seconds / 2, started, list[Asked]()
    threads, called = list[threading.Thread](), None
    while due < started + seconds:
        if called is None and at_half and due >= half:
            time.sleep(max(0.0, half - time.perf_counter()))
            called = threading.Thread(target=at_half)
            called.start()
        time.sleep(max(0.0, due - time.perf_counter()))
        all_asked.append(Asked(due))
        question = questions[rng.randrange(len(questions))]
        threads.append(threading.Thread(target=answer, args=(engine, question, all_asked[-1], stop), daemon=True))
        threads[-1].start()
        due += rng.expovariate(rate)
    await_answers(threads, stop)
    return all_asked, half


def await_answers(threads: Sequence[threading.Thread], stop: threading.Event) -> None:
    """Wait for the answers for PATIENCE, then `stop` those that are open."""
    deadline = time.perf_counter() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.perf_counter()))
    stop.set()
    for thread in threads:
        thread.join()


def at_once(engine: Engine, questions: list[Question], count: int) -> float:
    """Questions/s if `count` arrive together, of those that are answered within PATIENCE: about the highest rate."""
    started, stop = time.perf_counter(), threading.Event()
    asked = [Asked(started) for _ in range(count)]
    threads = [
        threading.Thread(target=answer, args=(engine, questions[number], each, stop), daemon=True)
        for number, each in enumerate(asked)
    ]
    for thread in threads:
        thread.start()
    await_answers(threads, stop)
    answered = [each for each in asked if not each.error]
    return max(1, len(answered)) / (max(each.ended for each in asked) - started)


class Steps:
    """Rising rates for one engine."""

    def __init__(self, engine: Engine, questions: list[Question], quick: bool) -> None:
        self._engine, self._questions = engine, questions
        self._seconds, self._count, self._factor, self._most = (2.0, 8, 2.0, 2) if quick else (10.0, 48, 1.2, 8)

    def climb(self) -> Step | None:
        """The last step that holds; None if none does."""
        at_once(self._engine, self._questions, 8)  # adapters and prefixes are read
        rate = 0.5 * at_once(self._engine, self._questions, self._count)
        best = None
        for _ in range(self._most):
            seconds = max(self._seconds, min(3 * self._seconds, ENOUGH / rate))
            step = Step(rate, arrive(self._engine, self._questions, rate, seconds)[0])
            if step.holds:
                best, rate = step, rate * self._factor
            elif best:
                break
            else:  # other work on this machine, or many together are faster than one after the other
                rate /= 2
        return best


def late_until(asked: Sequence[Asked], event: float) -> float:
    """Seconds from `event` to the arrival of the last question that waited longer than LIMIT; 0 if none did."""
    late = [each.due - event for each in asked if each.wait > LIMIT and each.due >= event - LIMIT]
    return max([0.0, *late])
