"""The parent's handle on the child process: starts it, sends and receives messages, and reports why it ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from inference.engines import ModelFiles
from inference.settings import PROJECT

STDERR_TIMEOUT = 1.0  # seconds to wait for the last lines of a child that has ended


@dataclass(eq=False)
class Call:
    """A call to the child and the model that it runs. `events` receives (kind, value) pairs; the last one is an error
    if the child ends first."""

    number: int
    model: ModelFiles | None
    events: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)


class ChildProcess:
    """One child process. `on_exit` is called with it and the reason when it has ended."""

    def __init__(self, name: str, options: dict[str, Any], on_exit: Callable[[ChildProcess, str], None]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        module = "inference.engines.isolation.child"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), name, json.dumps(options)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            # Without GGML_NO_BACKTRACE llama.cpp starts a debugger when it aborts, if one is installed.
            env={**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        theirs.close()
        self.connection = Connection(ours.detach())
        self.calls: dict[int, Call] = {}
        self.loading: ModelFiles | None = None  # the files that it is loading
        self.ended = False
        self._on_exit, self._sending = on_exit, threading.Lock()
        self._stderr: deque[str] = deque(maxlen=20)
        self._stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_reader.start()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, *message: object) -> None:
        """Send a message. Raises OSError if the child has ended."""
        with self._sending:
            self.connection.send(message)

    def kill(self) -> None:
        """End the process and wait until it has ended."""
        self.process.kill()
        self.process.wait()

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line.decode("utf-8", "replace").strip()[:300])

    def _receive(self) -> None:
        try:
            while True:
                number, *event = self.connection.recv()
                if number is None:
                    (self.loading,) = event
                elif call := self.calls.get(number):
                    call.events.put((event[0], event[1]))
        except (EOFError, OSError):
            self.ended = True
            self.connection.close()
            self.kill()
            self._stderr_reader.join(STDERR_TIMEOUT)
            self._on_exit(self, self._exit_reason())

    def _exit_reason(self) -> str:
        """The last error message on its standard error, else its signal or exit code."""
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "it was killed, most likely because the memory was full"
        errors = [line for line in self._stderr if "failed" in line or "rror" in line] or list(self._stderr)
        if errors:
            return errors[-1].rpartition(": ")[2].rstrip(".")
        return signal.Signals(-code).name if code < 0 else f"code {code}"
