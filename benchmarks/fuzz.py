"""Damaged and hostile inputs: `python -m benchmarks.fuzz [--count 1000] [--seed 0] [--kind NAME] [--quick]`

Each input must get an answer or one sentence in time, and the page's process must live. Every 25 inputs an ordinary
question must be answered right. The same seed gives the same inputs. An input that fails is written to `--failures`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated

import typer

from benchmarks.fuzzing.audio_target import Recordings
from benchmarks.fuzzing.llamacpp_target import GgufFiles
from benchmarks.fuzzing.page_target import ApiBodies
from benchmarks.fuzzing.pytorch_target import ADAPTER, CONFIG, TOKENIZER, WEIGHTS, PytorchFiles
from benchmarks.fuzzing.target import Input, NoAnswer, PageCrash, Target, problem_of
from benchmarks.fuzzing.template_target import ChatTemplates
from benchmarks.report import Figure
from inference.errors import LabError, visitor_message
from inference.settings import PROJECT
from inference.terminal import run
from training.markdown import table

PYTORCH = {"safetensors": (WEIGHTS, ADAPTER), "adapter_config": (CONFIG,), "tokenizer": (TOKENIZER,)}
TARGETS: dict[str, Callable[[], Target]] = {
    "gguf": GgufFiles,
    **{kind: partial(PytorchFiles, *names) for kind, names in PYTORCH.items()},
    "templates": ChatTemplates,
    "audio": Recordings,
    "api": ApiBodies,
}
QUICK = 10  # inputs of each kind
CHECK_EVERY = 25  # inputs
WELL_BEHAVED_SECONDS = 2.0
GRACE = 5.0  # seconds after a target's own limit
OUTCOMES = ("answer", "sentence", "crash of a child", "hang", "error", "page crash", "wrong answer to others")
BAD = OUTCOMES[3:]
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@dataclass
class Result:
    """What became of the inputs of one kind. `slowest` and `slowest_check` are in seconds."""

    kind: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    slowest_check: float = 0.0
    slow_checks: int = 0

    @property
    def failed(self) -> int:
        """How many outcomes are not allowed."""
        return sum(self.counts[name] for name in BAD)

    def row(self) -> list[str]:
        """Its row of the table."""
        times = [f"{self.slowest:.1f}", f"{self.slowest_check:.1f}", str(self.slow_checks)]
        return [self.kind, *(str(self.counts[name]) for name in OUTCOMES), *times]


COLUMNS = ["kind", *OUTCOMES, "slowest input, s", "slowest ordinary question, s", f"over {WELL_BEHAVED_SECONDS:g} s"]


def outcome_of(target: Target, given: Input) -> tuple[str, str]:
    """Run an input; the outcome and its text."""
    try:
        return "answer", target.run(given)
    except LabError as error:
        message = visitor_message(error)
        if problem := problem_of(message):
            return "error", f"{problem}: {message!r}"
        return ("crash of a child" if "crashed" in message or "process ended" in message else "sentence"), message
    except PageCrash as error:
        return "page crash", str(error)
    except NoAnswer as error:
        return "hang", str(error)
    except BaseException as error:  # a panic of the library `tokenizers` is no Exception
        return "error", f"{type(error).__name__}: {error}"


def within(seconds: float, function: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """What a function returns, or a hang. A function that hangs keeps its thread."""
    results: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(function()), daemon=True).start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        return "hang", f"nothing in {seconds:g} s"


def check_others(target: Target) -> tuple[str, str]:
    """Ask the ordinary question; "answer" if it is answered right."""
    try:
        return ("answer", "") if target.well_behaved() else ("wrong answer to others", "the answer is wrong")
    except BaseException as error:  # whatever it is, a visitor got no answer
        return "wrong answer to others", f"{type(error).__name__}: {error}"


def fuzz(
    kind: str, count: int, seed: int = 0, start: int = 0, failures: Path | None = None, target: Target | None = None
) -> Result:
    """Run inputs `start` to `start + count` of a kind. Failing ones are written to the folder `failures`."""
    result, own = Result(kind), target is None
    target = target or TARGETS[kind]()
    try:
        check_others(target)  # loads what is needed
        for number in range(start, start + count):
            given = target.make(Random(f"{kind}/{seed}/{number}"))
            began = time.perf_counter()
            outcome, text = within(target.seconds + GRACE, lambda given=given: outcome_of(target, given))  # type: ignore[misc]  # mypy can't infer it
            seconds = time.perf_counter() - began
            if outcome in ("answer", "sentence") and seconds > target.seconds:
                outcome, text = "hang", f"{seconds:.1f} s: {text}"
            if outcome == "hang":
                target.restart()
            result.slowest = max(result.slowest, seconds)
            record(result, outcome, f"{kind} input {number} ({given.variant}): {text}")
            if outcome in BAD and failures is not None:
                write_failure(failures / f"{kind}-{seed}-{number}", given, f"{outcome}: {text}")
            if (number + 1) % CHECK_EVERY == 0:
                check(result, target, number)
        check(result, target, start + count - 1)
    finally:
        if own:
            target.close()
    return result


def check(result: Result, target: Target, number: int) -> None:
    """Ask the ordinary question after input `number`, and time it."""
    began = time.perf_counter()
    outcome, text = within(60, lambda: check_others(target))
    seconds = time.perf_counter() - began
    result.slowest_check = max(result.slowest_check, seconds)
    result.slow_checks += seconds > WELL_BEHAVED_SECONDS
    if outcome != "answer":
        record(result, outcome, f"{result.kind}, the ordinary question after input {number}: {text}")


def record(result: Result, outcome: str, line: str) -> None:
    """Count an outcome and keep what is not allowed."""
    result.counts[outcome] += 1
    if outcome in BAD:
        result.failures.append(f"{outcome}: {line[:500]}")


def write_failure(path: Path, given: Input, text: str) -> None:
    """Write an input and, beside it, what happened."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".bin").write_bytes(given.content)
    path.with_suffix(".txt").write_text(f"{given.variant}\n{text}\n", encoding="utf-8", errors="replace")


def measure(quick: bool) -> list[Figure]:
    """The figures for `python -m benchmarks`. Raises RuntimeError if an input has an outcome that is not allowed."""
    count = QUICK if quick else 1000
    results = [fuzz(kind, count) for kind in TARGETS]
    if bad := [line for result in results for line in result.failures]:
        raise RuntimeError(f"{len(bad)} inputs failed, the first one: {bad[0]}")
    return [
        Figure(
            f"{result.kind}: answers, sentences, crashes of a child",
            ", ".join(str(result.counts[name]) for name in OUTCOMES[:3]),
            "and nothing else",
        )
        for result in results
    ]


@app.command(help=__doc__)
def main(
    count: Annotated[int, typer.Option(min=1, help="Inputs of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Chooses the inputs.")] = 0,
    start: Annotated[int, typer.Option(min=0, help="Number of the first input.")] = 0,
    kind: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(TARGETS)}; default: all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK} inputs of each kind.")] = False,
    failures: Annotated[Path, typer.Option(help="Folder for inputs that fail.")] = PROJECT / "runs" / "fuzz",
) -> None:
    """Print a table. The exit code is 1 if an outcome is not allowed."""
    chosen = kind or list(TARGETS)
    if unknown := [name for name in chosen if name not in TARGETS]:
        raise LabError(f"There is no kind “{unknown[0]}”: choose from {', '.join(TARGETS)}.")
    results = []
    for name in chosen:
        results.append(fuzz(name, QUICK if quick else count, seed, start, failures))
        print(*results[-1].failures, sep="\n", flush=True)
    print(table(COLUMNS, [result.row() for result in results]))
    if any(result.failed for result in results):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
