"""Whether the models of a remote server are those of the catalog: five questions with known answers for each.

The known answers are the greedy ones in the run records on this disk: an adapter's own, and those of its base. Another
precision changes a few words of some answers; another base changes nearly all answers. Recorded questions are asked
without the system prompt that a data set may have.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

from inference.catalog import Catalog, Entry
from inference.engines import Message, ModelServer, Sampling
from inference.errors import LabError
from inference.metrics import log_event
from inference.run_records import RUN_RECORD, SIZE_LIMITS, RunRecord, parse

QUESTIONS = 5  # of each model
SAME = 2  # answers at least that have to begin as the known ones do
LENGTH = 40  # characters of that beginning
GREEDY = Sampling(temperature=0, max_tokens=24)
EVERY = 600.0  # seconds between two checks: the server may be restarted with other models


class ServerCheck:
    """Checks a server in a thread of its own. `note` is what was found."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._checked_at: float | None = None  # on the monotonic clock
        self.note = ""  # a sentence for visitors; "" if nothing was found

    def start(self, server: ModelServer) -> None:
        """Check the server's models in the background, if the last check is old."""
        with self._lock:
            if self._checked_at is not None and time.monotonic() - self._checked_at < EVERY:
                return
            self._checked_at = time.monotonic()
        threading.Thread(target=self.check, args=(server,), name="server check", daemon=True).start()

    def check(self, server: ModelServer) -> None:
        """Check all models of the server that have known answers. It may end before that: then nothing is known."""
        try:
            served = server.models()
            known = {model: answers for model, answers in known_answers(self._catalog).items() if model in served}
            others = [model for model, answers in known.items() if differs(server, model, answers)]
        except LabError:
            return
        self.note = ""
        if others:
            log_event("remote models differ", logging.WARNING, models=others)
            self.note = (
                f"The server may have another base: {', '.join(sorted(others))} there gives other answers to known "
                "questions than the run records here."
            )


def known_answers(catalog: Catalog) -> dict[str, list[tuple[str, str]]]:
    """The questions and greedy answers of the catalog's models whose run record, or that of an adapter, is on this
    disk."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry, record in run_records(catalog):
        answers = [each for each in record.answers[:QUESTIONS] if each.before and each.after]
        found.setdefault(entry.id, [(each.question, each.after) for each in answers])
        if entry.base:
            found.setdefault(entry.base, [(each.question, each.before) for each in answers])
    return {model: answers for model, answers in found.items() if len(answers) > SAME}


def run_records(catalog: Catalog) -> Iterator[tuple[Entry, RunRecord]]:
    """The adapters of the catalog on this disk, with their run records. Those that cannot be read are left out."""
    for entry in catalog.entries:
        path = entry.folder / RUN_RECORD if entry.folder and entry.base else None
        try:
            if path and path.stat().st_size <= SIZE_LIMITS[RUN_RECORD]:
                yield entry, parse(RunRecord, path.read_bytes(), path.name)
        except (OSError, LabError):
            continue


def differs(server: ModelServer, model: str, answers: list[tuple[str, str]]) -> bool:
    """Whether fewer than `SAME` answers begin as the known ones do. Raises LabError."""
    same = 0
    for question, known in answers:
        messages = [Message(role="user", content=question)]
        answer = "".join(chunk.text for chunk in server.stream(model, messages, GREEDY, lambda: False))
        same += bool(answer.strip()) and known.strip().startswith(answer.strip()[:LENGTH])
    return same < SAME
