"""Measure this project: `python -m benchmarks [NAME…] [--quick] [--gpu]`, or `make bench` and `make bench-gpu`.

Runs one benchmark after another, each in a process of its own, and prints one Markdown table with the machine and the
versions. A benchmark that this machine can't run is listed with its reason.
"""

from __future__ import annotations

import shlex
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Annotated

import typer

from benchmarks.report import (
    Figure,
    Unavailable,
    describe_machine,
    has_gpu,
    measure,
    package_versions,
    run_in_own_process,
    timed,
)
from inference.errors import LabError
from inference.terminal import run
from training.markdown import table

BENCHMARKS = {
    "engine_overhead": "what the llama.cpp engine and its process cost beside llama.cpp itself",
    "concurrency": "tokens/s of several questions at once",
    "llama_server": "tokens/s of the llama.cpp engine against llama-server",
    "many_adapters": "what a hundred adapters of one base cost",
    "page_start": "seconds from `python app.py` to a page",
    "page_in_browser": "seconds to a question box in Chromium, and what the page costs a token",
    "answer_beside_training": "the first token while the page trains a model, against alone",
    "pytorch_engine": "tokens/s of the PyTorch engine against `generate`",
    "transcription_time": "seconds from a recording to its transcript",
    "transcription_errors": "word error rate of the embedded speech model",
    "training_speed": "tokens/s of fine-tuning against plain TRL and Unsloth",
    "training_cards": "tokens/s on several GPUs against one",
    "training_memory": "memory and speed of a run's plan, whole card, memory: low, and as on a T4",
    "adapter_precision": "what a bfloat16 adapter loses against a float32 one",
    "fleet": "questions/s of one and two vLLM servers, and what a killed one costs",
    "fuzz": "damaged and hostile inputs of each kind",
    "soak": "many visitors at once, good and bad ones",
}
LONG = ("fleet", "fuzz", "soak")  # they run if they are named, or with --quick
GPU = (
    "training_speed",
    "training_memory",
    "training_cards",
    "adapter_precision",
    "pytorch_engine",
    "transcription_time",
)
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@dataclass
class Outcome:
    """What became of one benchmark: its figures, or why there are none."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""
    failed: bool = False

    @property
    def rows(self) -> list[list[str]]:
        """Its rows of the table: benchmark, what, measured, expected."""
        if self.reason:
            return [[self.name, "failed" if self.failed else "not run here", self.reason, ""]]
        return [[self.name, figure.what, figure.value, figure.expected] for figure in self.figures]


def run_benchmark(name: str, quick: bool) -> Outcome:
    """Run a benchmark in a process of its own. An error ends this benchmark and not the others."""
    outcome = Outcome(name)
    with timed() as watch:
        try:
            outcome.figures = run_in_own_process(measure, name, quick)
        except Unavailable as error:
            outcome.reason = str(error)
        except Exception as error:  # whatever it is: the rest must run
            traceback.print_exception(error)
            message = " ".join(str(error).split())
            outcome.reason, outcome.failed = f"{type(error).__name__}: {message[-400:]}", True
    outcome.seconds = watch.seconds
    return outcome


def summary(outcomes: list[Outcome], arguments: list[str]) -> str:
    """The command, the date, the machine, the versions, and one table of all figures."""
    times = ", ".join(f"{outcome.name} {outcome.seconds:.0f}" for outcome in outcomes)
    return "\n".join([
        f"- Command: `{shlex.join(['python', '-m', 'benchmarks', *arguments])}`",
        f"- Date: {time.strftime('%Y-%m-%d')}",
        f"- Machine: {describe_machine()}",
        f"- Versions: {package_versions()}",
        f"- Seconds: {times}",
        "",
        table(
            ["benchmark", "what", "measured", "expected"], [row for outcome in outcomes for row in outcome.rows]
        ),
    ])  # fmt: skip


@app.command(help=__doc__)
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help=f"{', '.join(BENCHMARKS)}.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Seconds each: nano models, few rounds. Shows that it runs, not how fast.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Those that a GPU changes, and only if there is one.")] = False,
) -> None:
    """Run benchmarks and print one table. The exit code is 1 if one failed."""
    chosen = names or [name for name in (GPU if gpu else BENCHMARKS) if quick or name not in LONG]
    if unknown := [name for name in chosen if name not in BENCHMARKS]:
        raise LabError(f"There is no benchmark “{unknown[0]}”: choose from {', '.join(BENCHMARKS)}.")
    missing = "It needs an NVIDIA GPU." if gpu and not run_in_own_process(has_gpu) else ""
    outcomes = []
    for number, name in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {name}: {BENCHMARKS[name]} …", file=sys.stderr, flush=True)
        outcomes.append(Outcome(name, reason=missing) if missing else run_benchmark(name, quick))
        result = outcomes[-1].reason or f"done in {outcomes[-1].seconds:.0f} s"
        print(f"[{number}/{len(chosen)}] {name}: {result}", file=sys.stderr, flush=True)
    options = [option for option, is_on in (("--quick", quick), ("--gpu", gpu)) if is_on]
    print(summary(outcomes, [*(names or []), *options]))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
