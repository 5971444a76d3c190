"""The app on a free port of this machine, and a client that speaks to its API as programs do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from inference.settings import PROJECT

START_SECONDS = 60.0
STOP_SECONDS = 20.0
UNREACHABLE = "http://127.0.0.1:9"  # nothing answers there
ENGINE_MODULE = "inference.engines.isolation"  # in the command line of the engine's process
# What a process does, and a part of its command line.
PROCESSES = (
    ("the engine's process", ENGINE_MODULE),
    ("speech recognition", "inference.speech"),
    ("chat templates", "chat_template.renderer"),
    ("the page's process", "app.py"),
)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class RunningApp:
    """`python app.py`, from `with` to its end. Its folders are temporary, and it reaches nothing but this machine.
    `environment` adds to the variables of this process."""

    def __init__(self, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="running-app-")
        self.log = Path(self._folder.name) / "log"
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        own = {
            "PORT": str(port), "HF_ENDPOINT": UNREACHABLE, "HTTPS_PROXY": UNREACHABLE, "HUB_NAMESPACE": "",
            "VOTES": str(Path(self._folder.name) / "votes.sqlite"), "GRADIO_TEMP_DIR": f"{self._folder.name}/uploads",
            "NO_PROXY": "127.0.0.1,localhost",
        }  # fmt: skip
        self._environment = {**os.environ, **own, **environment}

    def __enter__(self) -> RunningApp:
        with self.log.open("w", encoding="utf-8") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=PROJECT, env=self._environment, stdout=lines, stderr=lines
            )
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                httpx.get(f"{self.address}/config", timeout=5, trust_env=False).raise_for_status()
                return self
            time.sleep(0.1)
        self.close()
        raise RuntimeError("app.py ended before its page answered: run `python app.py` to see why.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the app runs."""
        return self.process.poll() is None

    def close(self) -> None:
        """End the app as an operator does."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()

    def log_text(self) -> str:
        """What the app has written."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The app's process and those below it."""
        with suppress(psutil.Error):
            app = psutil.Process(self.process.pid)
            return [app, *app.children(recursive=True)]
        return []

    def engine_process(self) -> psutil.Process | None:
        """The process that runs llama.cpp, if there is one."""
        for process in self.processes()[1:]:
            with suppress(psutil.Error):
                if any(ENGINE_MODULE in part for part in process.cmdline()):
                    return process
        return None

    def memory(self) -> dict[str, int]:
        """The memory of the processes in bytes, by what they do. What several share is counted once."""
        sizes: dict[str, int] = dict.fromkeys((name for name, _ in PROCESSES), 0)
        for process in self.processes():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                name = next((name for name, part in PROCESSES if part in command), "others")
                sizes[name] = sizes.get(name, 0) + process.memory_full_info().pss
        return sizes

    def client(self, seconds: float = 60.0) -> Client:
        """A client of its own connections; `seconds` limit each wait for data."""
        return Client(self.address, seconds)


@dataclass(frozen=True)
class Event:
    """A server-sent event: its name and its data, which are JSON."""

    name: str
    data: Any


class Client:
    """Calls endpoints over HTTP, as https://www.gradio.app/guides/querying-gradio-apps-with-curl describes."""

    def __init__(self, address: str, seconds: float) -> None:
        self.http = httpx.Client(base_url=f"{address}/gradio_api", timeout=seconds, trust_env=False)
        self._parameters: dict[str, list[dict[str, Any]]] = {}

    def start(self, endpoint: str, body: bytes) -> str:
        """Send a call and return its number. Raises httpx.HTTPStatusError if it is refused."""
        response = self.http.post(f"/call/{endpoint}", content=body, headers={"Content-Type": "application/json"})
        response.raise_for_status()
        return str(response.json()["event_id"])

    def events(self, path: str) -> Iterator[Event]:
        """The events of a stream until the server ends it. Closing the iterator closes the connection."""
        with self.http.stream("GET", path) as response:
            response.raise_for_status()
            name = "message"
            for line in response.iter_lines():
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    yield Event(name, json.loads(line[5:]))

    def data(self, endpoint: str, **named: Any) -> list[Any]:
        """The values of an endpoint's parameters in their order: the named ones, and defaults."""
        if not self._parameters:
            information = self.http.get("/info").raise_for_status().json()["named_endpoints"]
            self._parameters = {name.strip("/"): each["parameters"] for name, each in information.items()}
        parameters = self._parameters[endpoint]
        return [named.get(each["parameter_name"], each.get("parameter_default")) for each in parameters]

    def call(self, endpoint: str, **named: Any) -> Iterator[Event]:
        """Call an endpoint with named parameters and yield its events: "generating", then "complete" or "error"."""
        number = self.start(endpoint, json.dumps({"data": self.data(endpoint, **named)}).encode())
        for event in self.events(f"/call/{endpoint}/{number}"):
            if event.name != "heartbeat":
                yield event

    def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload a file and return the value that a file's parameter takes."""
        response = self.http.post("/upload", files={"files": (name, content)})
        response.raise_for_status()
        return {"path": response.json()[0], "meta": {"_type": "gradio.FileData"}}
