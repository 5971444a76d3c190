"""Many visitors at once, good and bad ones: `python -m benchmarks.soak [--minutes 10] [--visitors 50] [--quick]`

The app runs on this machine. Visitors ask by text and by voice, switch models, stop, read slowly, and send hostile
values and templates. The engine's process is killed at random. Each request must end with an answer or one sentence.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer

from benchmarks.fuzzing.mutations import VALUES
from benchmarks.fuzzing.target import EXPECTED, NANO, QUESTION, RECORDING, problem_of
from benchmarks.report import Figure, figure_table
from benchmarks.running_app import Client, Event, RunningApp
from inference.settings import PROJECT
from inference.terminal import run

QUICK_MINUTES, QUICK_VISITORS = 1 / 3, 8
KILL_AFTER = (20.0, 40.0)  # seconds between two kills
QUICK_KILL_AFTER = (6.0, 9.0)
MEASURE_EVERY = 5.0  # seconds
PATIENCE = 120.0  # seconds without an event after which an answer is lost
PAUSE = (0.2, 3.0)  # seconds between two requests of a visitor
HOSTILE_TEMPLATE = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a*b }}{% endfor %}{% endfor %}"
# All visitors come from one address here.
LIMITS = {"QUESTIONS_AT_ONCE": "0", "QUESTIONS_PER_MINUTE": "0", "VOTES_PER_HOUR": "0", "QUEUE": "200"}
MODELS = ("nano", "nano-emoji", "nano-emoji-1-epoch")
app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@dataclass
class Results:
    """What happened. Thread-safe. Times are in seconds, memory in bytes."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    first_text: list[float] = field(default_factory=list)
    longest_wait: float = 0.0
    memory: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    kills: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, answer: Answer) -> None:
        """Count a request that has ended."""
        with self.lock:
            self.counts[what] += 1
            self.counts[f"ended with {answer.end}"] += 1
            if answer.end == "nothing":
                self.lost.append(f"{what}: {answer.text}")
            elif answer.end == "sentence" and (problem := problem_of(answer.text)):
                self.errors.append(f"{what}: {problem}: {answer.text!r}")
            elif answer.end == "refusal" and "status 4" not in answer.text:
                self.errors.append(f"{what}: {answer.text}")
            if what == "question":
                self.longest_wait = max(self.longest_wait, answer.seconds)
                if answer.end == "answer":
                    self.first_text.append(answer.first_text)
                    if EXPECTED not in answer.text:
                        self.errors.append(f"{what}: the answer is wrong: {answer.text[:100]!r}")


@dataclass
class Answer:
    """How a request ended: `end` is answer, sentence, refusal, stop or nothing. Times in seconds since the request."""

    end: str = "nothing"
    text: str = ""
    first_text: float = 0.0
    seconds: float = 0.0


def request(client: Client, endpoint: str, slow: float = 0.0, stop_after: int = 0, **named: Any) -> Answer:
    """Call an endpoint. `slow` seconds pass between two reads; the connection is closed after `stop_after` events."""
    answer, started, count = Answer(), time.perf_counter(), 0
    try:
        events = client.call(endpoint, **named)
        for event in events:
            count += 1
            answer.first_text = answer.first_text or time.perf_counter() - started
            time.sleep(slow)
            if stop_after and count >= stop_after:
                answer.end = "stop"
                break
            read_event(answer, event)
    except httpx.HTTPStatusError as error:
        answer.end, answer.text = "refusal", f"HTTP status {error.response.status_code}"
    except httpx.HTTPError as error:
        answer.text = f"{type(error).__name__}: {error}"
    answer.seconds = time.perf_counter() - started
    return answer


def read_event(answer: Answer, event: Event) -> None:
    """Take over what an event says."""
    if event.name == "complete":
        answer.end, answer.text = "answer", json.dumps(event.data, ensure_ascii=False)
    elif event.name == "error":
        error = event.data.get("error") if isinstance(event.data, dict) else event.data
        answer.end, answer.text = "sentence", str(error or "")


class Visitor(threading.Thread):
    """One visitor: a mix of requests, one after another, until `stop` is set."""

    def __init__(self, running: RunningApp, results: Results, number: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._client, self._results, self._stop_asking = running.client(PATIENCE), results, stop
        self._rng = Random(number)
        requests: tuple[tuple[str, int, Callable[[], Answer]], ...] = (
            ("question", 50, lambda: self._ask(model="nano-emoji", temperature=0)),
            ("another model", 15, lambda: self._ask(model=self._rng.choice(MODELS))),
            ("voice", 5, self._speak),
            ("stop", 10, lambda: self._ask(model="nano", max_tokens=256, temperature=2, stop_after=1)),
            ("slow reader", 5, lambda: self._ask(model="nano-emoji", slow=0.5)),
            ("hostile value", 10, self._hostile_value),
            ("hostile template", 3, lambda: self._ask(model="hostile")),
            ("ranking", 2, lambda: request(self._client, "ranking")),
        )
        self._requests = requests

    def run(self) -> None:
        """See `threading.Thread.run`."""
        while not self._stop_asking.is_set():
            ((what, _, send),) = self._rng.choices(self._requests, [weight for _, weight, _ in self._requests])
            try:
                self._results.add(what, send())
            except Exception as error:  # the visitor continues, and the error is reported
                with self._results.lock:
                    self._results.errors.append(f"{what}: {type(error).__name__}: {error}")
            self._stop_asking.wait(self._rng.uniform(*PAUSE))

    def _ask(self, **named: Any) -> Answer:
        values: dict[str, Any] = {"question": QUESTION, "max_tokens": 48}
        return request(self._client, "ask", **(values | named))

    def _speak(self) -> Answer:
        audio = self._client.upload(RECORDING.name, RECORDING.read_bytes())
        return request(self._client, "ask_voice", audio=audio, model="nano-emoji", language="en")

    def _hostile_value(self) -> Answer:
        name = self._rng.choice(("question", "model", "system_prompt", "temperature", "max_tokens", "seed"))
        value = self._rng.choice([value for value in VALUES if value is not None])
        return self._ask(**({"model": "nano"} | {name: value}))


def write_catalog(folder: Path) -> Path:
    """The catalog's nano models and "hostile", whose chat template computes for too long."""
    shutil.copytree(PROJECT / "adapters", folder, dirs_exist_ok=True)
    data = bytearray((NANO / "nano-Q8_0.gguf").read_bytes())
    template = (NANO / "chat_template.jinja").read_bytes()
    start = data.index(template[:40])
    data[start : start + len(template)] = HOSTILE_TEMPLATE.encode().ljust(len(template))
    (folder / "hostile").mkdir()
    (folder / "hostile" / "model.gguf").write_bytes(data)
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        catalog.write("  - {id: hostile, name: Hostile, summary: A loop., folder: hostile, file: model.gguf}\n")
    return folder / "catalog.yaml"


def kill_engine(running: RunningApp, results: Results, after: tuple[float, float], stop: threading.Event) -> None:
    """Kill the engine's process at random."""
    rng = Random(0)
    while not stop.wait(rng.uniform(*after)):
        if process := running.engine_process():
            with suppress(psutil.Error):
                process.kill()
                results.kills += 1


def soak(minutes: float, visitors: int, kill_after: tuple[float, float]) -> Results:
    """Run all visitors for some minutes."""
    results, stop = Results(), threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        RunningApp(CATALOG=str(write_catalog(Path(folder) / "adapters")), **LIMITS) as running,
    ):
        threads: list[threading.Thread] = [Visitor(running, results, number, stop) for number in range(visitors)]
        threads.append(threading.Thread(target=kill_engine, args=[running, results, kill_after, stop], daemon=True))
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while (now := time.monotonic() - began) < minutes * 60:
            if not running.alive:
                results.errors.append("the page's process ended")
                break
            results.memory.append((now, running.memory()))
            stop.wait(MEASURE_EVERY)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
        results.memory.append((time.monotonic() - began, running.memory()))
        if tracebacks := running.log_text().count("Traceback"):
            last = running.log_text().rpartition("Traceback")[2].strip().splitlines()[-1]
            results.errors.append(f"tracebacks in the log: {tracebacks}, the last one: {last[:200]}")
    return results


def figures_of(results: Results) -> list[Figure]:
    """The rows of the table."""
    p50, p99 = np.percentile(results.first_text or [0], [50, 99])
    steady = [sizes for seconds, sizes in results.memory if seconds >= 60] or [sizes for _, sizes in results.memory]
    names = sorted({name for sizes in steady for name in sizes})
    endings = ("answer", "sentence", "refusal", "stop")
    return [
        Figure("requests that ended with " + ", ".join(endings),
               ", ".join(f"{results.counts[f'ended with {end}']:,}" for end in endings)),
        Figure("errors other than the intended sentences", str(len(results.errors)), "0"),
        Figure("answers lost", str(len(results.lost)), "0"),
        Figure("first text of a well-behaved visitor, s: p50, p99", f"{p50:.2f}, {p99:.2f}"),
        Figure("longest wait of a well-behaved visitor for a complete answer, s", f"{results.longest_wait:.1f}"),
        memory_figure("memory after the first minute and at the end, MB", [sum(sizes.values()) for sizes in steady]),
        *(memory_figure(f"of it {name}, MB", [sizes.get(name, 0) for sizes in steady]) for name in names),
        Figure("kills of the engine's process", str(results.kills)),
    ]  # fmt: skip


def memory_figure(what: str, sizes: list[int]) -> Figure:
    """Medians of the first and of the last half minute."""
    count = int(30 / MEASURE_EVERY)
    first, last = (np.median(part) / 1e6 for part in (sizes[:count], sizes[-count:]))
    return Figure(what, f"{first:,.0f}, {last:,.0f}", "±5 %")


def measure(quick: bool) -> list[Figure]:
    """The figures for `python -m benchmarks`. Raises RuntimeError for errors and lost answers."""
    results = soak(QUICK_MINUTES, QUICK_VISITORS, QUICK_KILL_AFTER) if quick else soak(10, 50, KILL_AFTER)
    if bad := [*results.errors, *results.lost]:
        raise RuntimeError(f"{len(bad)} requests failed, the first one: {bad[0]}")
    return figures_of(results)


@app.command(help=__doc__)
def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 10,
    visitors: Annotated[int, typer.Option(min=1, help="How many at once.")] = 50,
    quick: Annotated[bool, typer.Option("--quick", help="20 seconds with 8 visitors.")] = False,
) -> None:
    """Print a table. The exit code is 1 for errors other than the intended sentences, and for lost answers."""
    results = soak(QUICK_MINUTES, QUICK_VISITORS, QUICK_KILL_AFTER) if quick else soak(minutes, visitors, KILL_AFTER)
    print(*results.errors[:20], *(f"lost: {line}" for line in results.lost[:20]), sep="\n")
    print(figure_table(figures_of(results)))
    if results.errors or results.lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    run(app)
