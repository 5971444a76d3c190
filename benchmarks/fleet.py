"""How many questions a second does a fleet answer, and what does a killed replica cost?

Questions arrive at random times that do not wait for answers (a Poisson process), at rising rates, until the 99th
percentile of the first token exceeds 2 s. A wait counts from the arrival. The conversations are those of the emoji data
set, in turns under two adapters. Measured: one vLLM replica; two behind the router of `make fleet`; two of which one is
killed; and the page's llama.cpp engine on all cores. The client runs on the same cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean

import psutil

from benchmarks.arrivals import LIMIT, Question, Steps, arrive, late_until, percentile
from benchmarks.report import Figure, Unavailable, has_gpu, run_in_own_process
from benchmarks.running_app import free_port
from benchmarks.timed_models import nano
from inference.engines import Engine, Message, load_engine
from inference.engines.remote.engine import Engine as RemoteEngine
from inference.settings import PROJECT

START_SECONDS = 600.0  # until a replica answers; 20 on idle cores
KILLED_SHARE = 0.6  # of the rate that one replica carries: the other must carry it alone
FLEET_BIN = PROJECT / ".venv-fleet" / "bin"  # `make fleet` installs it


def search_path() -> str:
    """The PATH that has vLLM and its router. Raises Unavailable without them."""
    path = f"{FLEET_BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    for program in ("vllm", "vllm-router"):
        if shutil.which(program, path=path) is None:
            raise Unavailable(f"It needs vLLM: run `make fleet` once, or put {program} on PATH.")
    return path


class RunningFleet:
    """Two replicas and a router on free ports, with the commands of `make fleet`. `kill` kills one."""

    def __init__(self, folder: Path, gpu: bool) -> None:
        from fleet.settings import FleetSettings

        path = search_path()
        urls = tuple(f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.settings = replace(
            FleetSettings.read(), replica_urls=urls, router_url=f"http://127.0.0.1:{free_port()}",
            listen="127.0.0.1", state=folder, gpu_memory=0.4,  # of one GPU for each of two
        )  # fmt: skip
        self._environment = {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "0" if gpu else ""}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the replicas, wait for them, and start the router."""
        from fleet.commands import replica_command, replica_environment, router_command

        variables = replica_environment(self.settings)
        for number, url in enumerate(self.settings.replica_urls, 1):
            self._start(replica_command(self.settings, number), variables)
            if self._environment["CUDA_VISIBLE_DEVICES"]:
                self._wait(url)  # each measures the free memory of the GPU when it starts
        for url in self.settings.replica_urls:
            self._wait(url)
        self._start(router_command(self.settings), {})
        self._wait(self.settings.router_url)

    def kill(self, number: int) -> None:
        """Kill a process and its children, as the kernel does if memory is exhausted."""
        parent = psutil.Process(self._processes[number].pid)
        for process in [*parent.children(recursive=True), parent]:
            process.kill()
        self._processes[number].wait()

    def stop(self) -> None:
        """Kill what runs."""
        for number, process in enumerate(self._processes):
            if process.poll() is None:
                self.kill(number)

    def _start(self, command: list[str], variables: dict[str, str]) -> None:
        with (self.settings.state / f"{len(self._processes)}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    command, cwd=PROJECT, env=self._environment | variables, stdout=log, stderr=log,
                )
            )  # fmt: skip

    def _wait(self, url: str) -> None:
        engine, deadline = RemoteEngine(url), time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    if self.settings.name in engine.models():
                        return
                except Exception:  # whatever it is, it may be over in a second
                    if time.monotonic() > deadline or any(each.poll() is not None for each in self._processes):
                        log = max(self.settings.state.glob("*.log")).read_text(errors="replace")
                        raise Unavailable(f"vLLM did not start here: {' '.join(log.split())[-300:]}") from None
                time.sleep(1)
        finally:
            engine.close()


@contextmanager
def engine_at(url: str) -> Iterator[Engine]:
    """The page's remote engine for a server."""
    engine = RemoteEngine(url)
    yield engine
    engine.close()


def conversations(models: Sequence[object]) -> list[Question]:
    """The emoji data set's conversations up to their last question, to `models` in turns."""
    from training.data.emoji.dataset import examples

    questions = []
    for number, turns in enumerate(examples(5000, seed=3)):
        messages = [Message(role=turn["role"], content=turn["content"]) for turn in turns[:-1]]
        questions.append(Question(models[number % len(models)], messages))
    return questions


def capacity(label: str, engine: Engine, questions: list[Question], quick: bool) -> tuple[Figure, float]:
    """The highest rate at which the 99th percentile of the first token stays below LIMIT; 0 if there is none."""
    best = Steps(engine, questions, quick).climb()
    what = f"{label}: questions/s, tokens/s, first token in s (50th, 99th percentile)"
    if best is None:
        return Figure(what, f"0: the first token takes more than {LIMIT:.0f} s at the lowest rate"), 0.0
    waits = [asked.wait for asked in best.asked]
    value = f"{best.rate:.2f}, {best.tokens_per_second:,.0f}, {percentile(waits, 50):.2f}, {percentile(waits, 99):.2f}"
    return Figure(what, value), best.rate


def one_killed(fleet: RunningFleet, questions: list[Question], rate: float, quick: bool) -> list[Figure]:
    """Kill a replica while questions arrive at the router."""
    seconds = 4.0 if quick else 30.0
    with engine_at(fleet.settings.router_url) as engine:
        asked, killed_at = arrive(engine, questions, rate, seconds, at_half=lambda: fleet.kill(1))
    lost = [each for each in asked if each.first is None]
    marked = [each for each in asked if each.first is not None and each.error]
    for error in {each.error for each in (*lost, *marked)}:
        print(error)
    what = f"two replicas, one killed, {rate:.1f} questions/s: "
    return [
        Figure(f"{what}asked, without a first token, ended in the middle and marked",
               f"{len(asked)}, {len(lost)}, {len(marked)}", "no question without a first token"),
        Figure(f"{what}s until the last question that waited longer than {LIMIT:.0f} s",
               f"{late_until(asked, killed_at):.1f}", "at most 10"),
    ]  # fmt: skip


def describe(questions: list[Question]) -> Figure:
    """How long the conversations are."""
    words = [sum(len(message["content"].split()) for message in question.messages) for question in questions]
    return Figure("conversations: words up to the answer (mean, longest)", f"{mean(words):.0f}, {max(words)}")


def measure(quick: bool) -> list[Figure]:
    """Measure all, or with `quick` some seconds of each."""
    search_path()
    gpu = run_in_own_process(has_gpu)
    with ExitStack() as stack:
        fleet = RunningFleet(Path(stack.enter_context(tempfile.TemporaryDirectory())), gpu)
        stack.callback(fleet.stop)
        fleet.start()
        adapters = [module.split("=")[0] for module in fleet.settings.lora_modules]
        questions = conversations(adapters)
        with engine_at(fleet.settings.replica_urls[0]) as engine:
            first, one = capacity("one replica", engine, questions, quick)
        with engine_at(fleet.settings.router_url) as engine:
            second, two = capacity("two replicas and their router", engine, questions, quick)
        figures = [describe(questions), first, second]
        if one and two:
            figures.append(Figure("two replicas against one", f"{two / one:.2f}"))
        figures += one_killed(fleet, questions, KILLED_SHARE * min(one, two) or 1.0, quick)
    engine = load_engine("llamacpp")
    figures.append(capacity("llama.cpp on all cores, nano", engine, conversations(nano().files), quick)[0])
    engine.close()
    return figures
