"""The fleet of `make fleet` on free ports, and questions that visitors ask it: for tests with a real vLLM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest

from fleet.settings import FleetSettings
from inference.engines import Engine, Message, Sampling
from inference.errors import LabError
from inference.settings import PROJECT

PYTHON = PROJECT / ".venv-fleet" / "bin" / "python"
NOT_INSTALLED = "vLLM is not installed: `make test-fleet` installs it and runs this"  # it takes minutes and 3.5 GB
START_SECONDS = 600  # two replicas on busy cores


def free_port() -> int:
    """A free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Fleet:
    """A running fleet, the supervisord that runs it, and the variables with which `python -m fleet` finds it."""

    settings: FleetSettings
    process: subprocess.Popen[str]
    variables: dict[str, str]
    log: Path

    @property
    def page(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.settings.page_port}"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m fleet` for this fleet."""
        return subprocess.run(
            [PYTHON, "-m", "fleet", *arguments], cwd=PROJECT, env={**os.environ, **self.variables},
            capture_output=True, text=True, check=False, timeout=START_SECONDS,
        )  # fmt: skip

    def pid(self, name: str) -> int:
        """The number of the first process of `replica-1`, `router` or `page`, and of its process group."""
        return int((self.settings.state / f"{name}.group").read_text().split()[0])

    def running(self) -> list[psutil.Process]:
        """All processes of the fleet's groups that run."""
        groups = {int(file.read_text().split()[0]) for file in self.settings.state.glob("*.group")}
        return [each for each in psutil.process_iter() if in_group(each, groups)]

    def engines(self) -> list[psutil.Process]:
        """vLLM's engine processes, of which each replica has one."""
        return [each for each in self.running() if each.name().startswith("VLLM::Engine")]

    def is_healthy(self, number: int) -> bool:
        """Whether the router sends questions to a replica."""
        return f'"url":"{self.settings.replica_urls[number - 1]}"' in "".join(
            each for each in get(f"{self.settings.router_url}/workers").split("},{") if '"is_healthy":true' in each
        )


def in_group(process: psutil.Process, groups: set[int]) -> bool:
    """Whether a process runs in one of these process groups."""
    try:
        return os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


@contextmanager
def started_fleet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """Start a fleet with its files in `folder`, and end it as Ctrl-C does. Skips the test without vLLM."""
    if not PYTHON.exists():
        pytest.skip(NOT_INSTALLED)
    variables = {
        "FLEET_REPLICA_URLS": f"http://127.0.0.1:{free_port()} http://127.0.0.1:{free_port()}",
        "FLEET_ROUTER_URL": f"http://127.0.0.1:{free_port()}",
        "FLEET_PAGE_PORT": str(free_port()),
        "FLEET_STATE": str(folder),
        "FLEET_HANG_TIMEOUT": "30",  # one that hangs is restarted sooner
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = FleetSettings.read()
    log = folder.parent / "fleet.log"
    with log.open("w") as lines:
        process = subprocess.Popen([PYTHON, "-m", "fleet", "start"], cwd=PROJECT, stdout=lines, stderr=lines, text=True)
    fleet = Fleet(settings, process, variables, log)
    try:
        yield fleet
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert not fleet.running()


def get(url: str) -> str:
    """The body of a page; empty if it does not answer."""
    try:
        with urlopen(url, timeout=5) as response:
            return str(response.read().decode())
    except (URLError, OSError):
        return ""


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Outcome:
    """What a visitor got: whether the first token came, the error, and when the question was asked (s)."""

    first: bool
    error: str | None
    asked: float


class Visitors:
    """Visitors who ask one question after the other until the block ends; `outcomes` has what they got."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._engine, self._ended = engine, threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._count = count
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> Visitors:
        self._visits = [self._pool.submit(self._visit, number) for number in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for visit in self._visits:
            visit.result(120)
        self._pool.shutdown()

    def _visit(self, number: int) -> None:
        while not self._ended.is_set():
            self.outcomes.append(self._ask(number))

    def _ask(self, number: int) -> Outcome:
        model, asked, first = ("nano", "nano-emoji")[number % 2], time.monotonic(), False
        messages = [Message(role="user", content=f"Tell me about {number} 🐙")]
        try:
            for chunk in self._engine.stream(model, messages, Sampling(2.0, max_tokens=48, top_p=1.0), lambda: False):
                first = first or bool(chunk.text)
        except LabError as error:
            return Outcome(first, str(error), asked)
        return Outcome(first, None, asked)
