"""Questions put to a model, several at once where its engine gains from it; every answer is kept as it comes.

Answers lie in one JSON Lines file for a model's revision, engine and suite: a command that was killed goes on with what
is missing, one that had ended asks nothing. They are kept unjudged, so that a change of scoring asks nothing either.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path

import typer

from inference.errors import LabError
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Record

# One by one on llama.cpp: eight at once changed 6 of 492 greedy answers of nano-emoji, and took 8.9 instead of 11.6 s.
AT_ONCE = {"llamacpp": 1}
OTHERWISE = 8
Answer = Callable[[ResolvedModel, object, Callable[[], bool]], Record]


def kept_in(folder: Path, served: ResolvedModel, suite: str) -> Path:
    """Where the answers of a model to a suite are kept."""
    return folder / "answers" / f"{served.engine_name}-{served.revision}" / f"{suite}.jsonl"


def read(path: Path) -> dict[str, Record]:
    """The answers so far by key. A last line that was cut by a kill is taken off the file. Raises LabError where
    another line is not JSON."""
    if not path.is_file():
        return {}
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise LabError(f"{path} holds a line that is no answer ({error}): ask anew with --again.") from error
    return {record.pop("key"): record for record in records}


def collect(
    path: Path, served: ResolvedModel, questions: Mapping[str, object], answer: Answer, what: str
) -> dict[str, Record]:
    """The answers to `questions` in their order, asked where `path` doesn't have them. Raises LabError where the model
    stops answering; what it has answered is kept."""
    known = read(path)
    missing = [key for key in questions if key not in known]
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        label = f"asking {served.name}: {what}"
        with path.open("a", encoding="utf-8") as file, typer.progressbar(
            length=len(questions), label=label, show_pos=True, file=sys.stderr
        ) as bar:  # fmt: skip
            bar.update(len(questions) - len(missing))

            def keep(key: str, record: Record) -> None:
                file.write(json.dumps({"key": key, **record}, ensure_ascii=False) + "\n")
                file.flush()
                known[key] = record
                bar.update(1)

            try:
                ask_all(served, {key: questions[key] for key in missing}, answer, keep)
            except LabError as error:
                done = sum(key in known for key in questions)
                raise LabError(
                    f"{served.name} stopped after {done} of {len(questions)} answers ({str(error).rstrip('.')}): they "
                    "are kept, and the same command goes on from there."
                ) from error
    return {key: known[key] for key in questions}


def ask_all(
    served: ResolvedModel, questions: Mapping[str, object], answer: Answer, keep: Callable[[str, Record], None]
) -> None:
    """Ask, and `keep` each answer as it comes. At the first error no more are asked."""
    stopped = threading.Event()
    at_once = AT_ONCE.get(served.engine_name, OTHERWISE)
    with ThreadPoolExecutor(at_once) as pool:
        waiting = iter(questions.items())
        running: dict[Future[Record], str] = {}
        try:
            while True:
                for key, question in islice(waiting, at_once - len(running)):
                    running[pool.submit(answer, served, question, stopped.is_set)] = key
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda each: each.exception() is not None):  # answers before errors
                    keep(running.pop(future), future.result())
        finally:
            stopped.set()
