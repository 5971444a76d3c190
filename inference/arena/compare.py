"""Ask several models one question at once, each in its own thread; and choose the models of a battle."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

from inference.engines import Figures, Message, Sampling
from inference.errors import LabError, visitor_message
from inference.lab import DEFAULT_SAMPLING, Lab
from inference.visitors.values import check_messages

ANY_MODEL = "*"  # stands for a random model that is ready (no model id may look like this)
POLL_SECONDS = 0.1  # between two looks at the growing answers


@dataclass
class Answer:
    """One model's answer while it grows. It has ended when it has `figures`, or an `error` (one sentence)."""

    model: str
    text: str = ""
    waiting: str = "waiting"
    figures: Figures | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer will not grow any more."""
        return self.figures is not None or self.error is not None

    @property
    def complete(self) -> bool:
        """Whether the model ended the answer itself, so that it can be compared with others."""
        return self.figures is not None and self.figures.finish_reason != "cancelled"


def choose_models(lab: Lab, chosen: Sequence[str], shuffled: bool) -> list[str]:
    """Return the ids of the models that answer: `chosen`, with each `ANY_MODEL` replaced by a model that is ready.

    Raises:
        LabError: a model is chosen twice, or too few models are ready.
    """
    named = [model for model in chosen if model != ANY_MODEL]
    for model in named:
        if named.count(model) > 1:
            raise LabError(f"{lab.entry(model).name} is chosen twice: choose two different models.")
    ready = [e.id for e in lab.catalog.entries if e.id not in named and lab.state(e).kind in ("in memory", "ready")]
    needed = len(chosen) - len(named)
    if needed > len(ready):
        raise LabError(f"Only {len(ready)} more models are ready, not {needed}: choose fewer, or name the models.")
    random_models = iter(random.sample(ready, needed))
    models = [next(random_models) if model == ANY_MODEL else model for model in chosen]
    if shuffled:
        random.shuffle(models)
    return models


def ask_all(
    lab: Lab,
    models: Sequence[str],
    messages: Sequence[Message],
    sampling: Sampling = DEFAULT_SAMPLING,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[list[Answer]]:
    """Ask all models at once. Yields the same list of growing answers, in the models' order, until all have ended.

    An error of one model is stored in its answer. Closing the iterator stops all answers.

    Raises:
        LabError: the question is not valid.
    """
    check_messages(messages)
    closed = threading.Event()

    def collect(answer: Answer) -> None:
        try:
            entry = lab.entry(answer.model)
            own = lab.applicable(entry, sampling)
            for chunk in lab.ask(entry, messages, own, lambda: closed.is_set() or cancelled()):
                answer.text += chunk.text
                answer.waiting = chunk.waiting or answer.waiting
                answer.figures = chunk.figures
        except LabError as error:
            answer.error = visitor_message(error)

    answers = [Answer(model) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        running = {pool.submit(collect, answer) for answer in answers}
        try:
            while running:
                done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()  # raises every error but a LabError
                yield answers
        finally:
            closed.set()
