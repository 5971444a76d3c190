"""Several models answer one question at once, each in a thread of its own; and which models a battle is between."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

from inference.engines import Figures, Message, Sampling
from inference.errors import LabError
from inference.lab import DEFAULT_SAMPLING, Lab, check_messages

ANY = "*"  # in a model's place: one of those that are ready (no id may look like this)
EVERY = 0.1  # seconds between two looks at the growing answers


@dataclass
class Answer:
    """One model's answer while it grows. It has ended when there are `figures`, or an `error`: one sentence."""

    model: str
    text: str = ""
    waiting: str = "waiting"
    figures: Figures | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.figures is not None or self.error is not None

    @property
    def whole(self) -> bool:
        """Whether it ended by itself: it can be compared with others."""
        return self.figures is not None and self.figures.finish_reason != "cancelled"


def draw(lab: Lab, chosen: Sequence[str], shuffled: bool) -> list[str]:
    """The ids of the models that answer: `chosen` with `ANY` filled in from those that are ready. Raises LabError for a
    model twice, or too few that are ready."""
    named = [model for model in chosen if model != ANY]
    for model in named:
        if named.count(model) > 1:
            raise LabError(f"{lab.entry(model).name} is chosen twice: choose another model in one of the places.")
    ready = [e.id for e in lab.catalog.entries if e.id not in named and lab.state(e).kind in ("in memory", "ready")]
    wanted = len(chosen) - len(named)
    if wanted > len(ready):
        raise LabError(f"Only {len(ready)} more models are ready, not {wanted}: choose fewer, or name the models.")
    drawn = iter(random.sample(ready, wanted))
    models = [next(drawn) if model == ANY else model for model in chosen]
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
    """Ask all the models at once; yields the same growing answers, in the models' order, again and again until all
    have ended. What one model can't do is told in its answer. Raises LabError for a question that isn't one. Closing
    the iterator ends the answers."""
    check_messages(messages)
    left = threading.Event()

    def drain(answer: Answer) -> None:
        try:
            for chunk in lab.ask(answer.model, messages, sampling, lambda: left.is_set() or cancelled()):
                answer.text += chunk.text
                answer.waiting = chunk.waiting or answer.waiting
                answer.figures = chunk.figures
        except LabError as error:
            answer.error = str(error)

    answers = [Answer(model) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        running = {pool.submit(drain, answer) for answer in answers}
        try:
            while running:
                done, running = wait(running, EVERY, FIRST_COMPLETED)
                for thread in done:
                    thread.result()  # raises what isn't a LabError
                yield answers
        finally:
            left.set()
