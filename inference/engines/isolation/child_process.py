"""The parent's handle on the child process: starts it, exchanges messages, kills it if it hangs, says why it ended."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from pydantic import ValidationError

from inference.engines import ModelFiles
from inference.engines.isolation.messages import FILES, result_from_json
from inference.processes.child import Child
from inference.processes.confinement import Limits

SILENCE = 5.0  # seconds without a heartbeat after which the child is killed
START = 60.0  # seconds until the first one
LONGEST_STEP = 60.0  # seconds of one step of the engine; a slow CPU reads a part of a prompt in a few
CHECK = 0.5  # seconds
MEMORY = 0.9  # of the machine's memory that the child may have for itself, mapped files aside


@dataclass(eq=False)
class Call:
    """A call to the child and the model that it runs. `events` receives (kind, value) pairs; the last one is an error
    if the child ends first."""

    number: int
    model: ModelFiles | None
    events: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)


class ChildProcess:
    """One child process, which can read what is below `readable`. `on_exit` is called with it and the reason when it
    has ended."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        readable: Sequence[str],
        on_exit: Callable[[ChildProcess, str], None],
    ) -> None:
        limits = Limits(readable=list(readable), memory=int(MEMORY * psutil.virtual_memory().total))
        # Without GGML_NO_BACKTRACE llama.cpp starts a debugger when it aborts, if one is installed.
        self._child = Child(
            "inference.engines.isolation.engine_process", [name, json.dumps(options)], limits, GGML_NO_BACKTRACE="1"
        )
        self.readable = frozenset(readable)
        self.calls: dict[int, Call] = {}
        self.loading: list[ModelFiles] = []  # the files that it is opening
        self.ended = False
        self._on_exit = on_exit
        self._hung = ""
        self._received_at, self._silence = time.monotonic(), START
        self._step_seconds = 0.0
        threading.Thread(target=self._receive, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._child.process.pid

    @property
    def silent_seconds(self) -> float:
        """The time since the last message."""
        return time.monotonic() - self._received_at

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._child.process.returncode

    def send(self, *message: object) -> None:
        """Send a message. Raises OSError if the child has ended."""
        self._child.channel.send(*message)

    def kill(self) -> None:
        """End the process and wait until it has ended."""
        self._child.kill()

    def _watch(self) -> None:
        """Kill the process if it is silent or computes one step for too long."""
        while not self.ended:
            if self.silent_seconds > self._silence or self._step_seconds > LONGEST_STEP:
                self._hung = "it did not respond"
                self.kill()
                return
            time.sleep(CHECK)

    def _receive(self) -> None:
        try:
            while True:
                number, kind, value = self._child.channel.receive()
                self._received_at = time.monotonic()
                if number is None:
                    self._note(kind, value)
                elif call := self.calls.get(number):
                    call.events.put((kind, result_from_json(kind, value)))
        except (EOFError, OSError, ValueError, TypeError, ValidationError):
            self.kill()
            self.ended = True
            self._child.channel.close()
            self._on_exit(self, self._hung or self._child.exit_reason())

    def _note(self, kind: str, value: Any) -> None:
        if kind == "alive":
            self._silence, self._step_seconds = SILENCE, float(value)
        elif kind == "loading":
            self.loading.append(FILES.validate_python(value))
        else:
            with suppress(ValueError):
                self.loading.remove(FILES.validate_python(value))
