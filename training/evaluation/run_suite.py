"""Asks a model the questions of a suite and saves each answer as it comes.

Answers are in one JSON Lines file for each revision of a model, engine and suite. After an interruption the same
command asks the missing questions only; a repeated command asks none. Answers are saved before they are judged, so a
change of scoring asks none either.
"""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from inference.errors import LabError
from training.evaluation.resolve_model import ResolvedModel
from training.evaluation.suites import Record, Result, Suite

# Questions at the same time, by engine. llama.cpp answers one by one: with eight, 6 of 492 greedy answers of
# nano-emoji changed, and the time fell from 11.6 to 8.9 s only.
PARALLEL = {"llamacpp": 1}
PARALLEL_DEFAULT = 8
Answer = Callable[[ResolvedModel, Any, Callable[[], bool]], Record]


def run_suite(suite: Suite, model: ResolvedModel, out: Path, every: int = 1, again: bool = False) -> Result:
    """Ask every n-th question of a suite and judge the answers.

    Args:
        suite: the questions.
        model: the model to ask.
        out: the folder for answers.
        every: the n of every n-th question.
        again: discard saved answers first.

    Raises:
        LabError: the model stops answering. Its answers so far are saved.
    """
    path = answers_file(out, model, suite.name)
    if again:
        path.unlink(missing_ok=True)
    return suite.judge(collect_answers(path, model, choose_questions(suite, every), suite.answer, suite.name))


def choose_questions(suite: Suite, every: int) -> dict[str, Any]:
    """Every n-th question, in the suite's order. Raises LabError if fewer than two are left."""
    # Every n-th of a fixed shuffle: questions alternate between two directions, and an even n would ask only one.
    shuffled = random.Random(0).sample(list(suite.questions), len(suite.questions))
    chosen = set(shuffled[::every])
    questions = {key: question for key, question in suite.questions.items() if key in chosen}
    if len(questions) < 2:
        raise LabError(
            f"--every {every} leaves {len(questions)} of the {len(suite.questions):,} questions of the {suite.name} "
            f"suite: choose at most {len(suite.questions) - 1}."
        )
    return questions


def answers_file(folder: Path, model: ResolvedModel, suite: str) -> Path:
    """The file of a model's answers to a suite."""
    return folder / "answers" / f"{model.engine_name}-{model.revision}" / f"{suite}.jsonl"


def read_answers(path: Path) -> dict[str, Record]:
    """The saved answers by key. Removes an incomplete last line, which a killed process leaves. Raises LabError if
    another line is not JSON."""
    if not path.is_file():
        return {}
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise LabError(f"{path} has an invalid line ({error}): ask again with --again.") from error
    return {record.pop("key"): record for record in records}


def collect_answers(
    path: Path, model: ResolvedModel, questions: Mapping[str, Any], answer: Answer, suite: str
) -> dict[str, Record]:
    """The answers to `questions` in their order. Asks those that `path` does not have, with a progress bar. Raises
    LabError if the model stops answering; its answers so far are saved."""
    known = read_answers(path)
    missing = {key: question for key, question in questions.items() if key not in known}
    if not missing:
        return {key: known[key] for key in questions}
    path.parent.mkdir(parents=True, exist_ok=True)
    label = f"asking {model.name}: {suite}"
    with path.open("a", encoding="utf-8") as file, typer.progressbar(
        length=len(questions), label=label, show_pos=True, file=sys.stderr
    ) as bar:  # fmt: skip
        bar.update(len(questions) - len(missing))

        def save(key: str, record: Record) -> None:
            file.write(json.dumps({"key": key, **record}, ensure_ascii=False) + "\n")
            file.flush()
            known[key] = record
            bar.update(1)

        try:
            ask_all(model, missing, answer, save)
        except LabError as error:
            done = sum(key in known for key in questions)
            raise LabError(
                f"{model.name} stopped after {done} of {len(questions)} answers ({str(error).rstrip('.')}). They are "
                "saved: the same command resumes."
            ) from error
    return {key: known[key] for key in questions}


def ask_all(
    model: ResolvedModel, questions: Mapping[str, Any], answer: Answer, save: Callable[[str, Record], None]
) -> None:
    """Ask the questions and `save` each answer as it comes. After the first error no more questions are asked."""
    stopped = threading.Event()
    parallel = PARALLEL.get(model.engine_name, PARALLEL_DEFAULT)
    with ThreadPoolExecutor(parallel) as pool:
        waiting = iter(questions.items())
        running: dict[Future[Record], str] = {}
        try:
            while True:
                for key, question in islice(waiting, parallel - len(running)):
                    running[pool.submit(answer, model, question, stopped.is_set)] = key
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda each: each.exception() is not None):  # answers before errors
                    save(running.pop(future), future.result())
        finally:
            stopped.set()
