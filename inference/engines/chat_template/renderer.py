"""Renders chat templates in processes that can be killed.

A model's chat template is a stranger's program. The sandbox is the second wall; the first is that it runs in a confined
process with bounded memory, which is killed if it computes for too long. A template that was killed once is not run
again. `python -m inference.engines.chat_template.renderer` is that process; it compiles each template once.
"""

from __future__ import annotations

import hashlib
import select
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from inference.errors import LabError
from inference.processes.child import Child, connect
from inference.processes.confinement import Limits
from inference.validation import shorten

CPU_SECONDS = 1.5  # for one prompt, more than the sandbox allows; an ordinary one takes less than a millisecond
WALL_SECONDS = 10.0
POLL = 0.05  # seconds
PATIENCE = 0.05  # seconds until another process is started
MEMORY = 512_000_000  # bytes
MAX_PROCESSES = 3
MAX_COMPILED = 64  # templates that a process keeps
MAX_REFUSED = 1000  # templates that the parent remembers


class RefusedConversation(LabError):
    """The template refuses this conversation by `raise_exception`; it may take another one."""


class Renderer:
    """One process. Not thread-safe."""

    def __init__(self) -> None:
        self._child = Child("inference.engines.chat_template.renderer", [], Limits(memory=MEMORY))
        # The process's CPU clock, as clock_getcpuclockid(3) numbers it. It needs no access to /proc.
        self._clock = (~self._child.process.pid << 3) | 2

    def render(self, source: str, names: Mapping[str, Any]) -> tuple[str, str]:
        """Returns ("text", prompt) or (kind of error, reason). Raises TimeoutError and EOFError; the process has ended
        then."""
        self._child.channel.send(source, names)
        started, before = time.monotonic(), self._cpu_seconds()
        while not select.select([self._child.socket], [], [], POLL)[0]:
            if self._cpu_seconds() - before > CPU_SECONDS or time.monotonic() - started > WALL_SECONDS:
                self.close()
                raise TimeoutError
        kind, text = self._child.channel.receive()
        return kind, text

    def exit_reason(self) -> str:
        """Why the process ended."""
        return self._child.exit_reason()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def _cpu_seconds(self) -> float:
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0  # it has ended, which the channel reports


class RendererPool:
    """Processes that render, started when they are needed. Thread-safe."""

    def __init__(self) -> None:
        self._idle: list[Renderer] = []
        self._started = 0
        self._changed = threading.Condition()
        self._refused: OrderedDict[str, str] = OrderedDict()

    def render(self, source: str, names: Mapping[str, Any]) -> str:
        """The prompt. `names` are what the template may use, as JSON values. Raises LabError with the reason."""
        key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        if reason := self._refused.get(key):
            raise LabError(reason)
        renderer = self._take()
        try:
            kind, text = renderer.render(source, names)
        except TimeoutError:
            self._give_back(None)
            raise self._refuse(key, f"it computed for more than {CPU_SECONDS:g} s") from None
        except (EOFError, OSError, ValueError):
            reason = renderer.exit_reason()
            renderer.close()
            self._give_back(None)
            raise self._refuse(key, f"its process ended: {reason}") from None
        except BaseException:
            renderer.close()
            self._give_back(None)
            raise
        self._give_back(renderer)
        if kind == "text":
            return text
        text = shorten(text, 200)  # the template of a stranger may have written it
        raise (RefusedConversation if kind == "refusal" else LabError)(
            {
                "invalid": f"The model's chat template is not valid ({text}): use another copy of the model.",
                "forbidden": f"The model's chat template cannot be used ({text}): use another copy of the model.",
                "refusal": f"The model's chat template refuses this conversation ({text}): start a new one.",
                "error": f"The model's chat template fails ({text}): use another copy of the model.",
            }[kind]
        )

    def _take(self) -> Renderer:
        """An idle process. Ordinary templates take so little that waiting a moment is better than starting another."""
        with self._changed:
            patience = PATIENCE if self._started < MAX_PROCESSES else None
            if self._started and not self._idle:
                self._changed.wait_for(lambda: bool(self._idle) or not self._started, patience)
            if self._idle:
                return self._idle.pop()
            self._started += 1
        try:
            return Renderer()
        except BaseException:
            self._give_back(None)
            raise

    def _give_back(self, renderer: Renderer | None) -> None:
        """Make a process idle again; None: it has ended."""
        with self._changed:
            if renderer is None:
                self._started -= 1
            else:
                self._idle.append(renderer)
            self._changed.notify_all()

    def check(self, source: str) -> None:
        """Raises LabError if the template is not valid."""
        self.render(source, {"messages": None})

    def _refuse(self, key: str, reason: str) -> LabError:
        message = f"The model's chat template cannot be used ({reason}): use another copy of the model."
        with self._changed:
            self._refused[key] = message
            while len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
        return LabError(message)


POOL = RendererPool()


def answer(compiled: OrderedDict[str, Any], source: str, names: Mapping[str, Any]) -> tuple[str, str]:
    """Compile and render in this process. Returns ("text", prompt) or (kind of error, reason)."""
    from jinja2 import TemplateError
    from jinja2.sandbox import SecurityError

    from inference.engines.chat_template.sandbox import Bounded

    try:
        if source not in compiled:
            environment = Bounded()
            compiled[source] = (environment, environment.from_string(source))
            while len(compiled) > MAX_COMPILED:
                compiled.popitem(last=False)
        compiled.move_to_end(source)
        environment, template = compiled[source]
        if names.get("messages") is None:
            return "text", ""
        return "text", environment.render(template, **names)
    except SecurityError as error:
        return "forbidden", str(error)
    except TemplateError as error:
        return "refusal" if source in compiled else "invalid", str(error)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        return "error", f"{type(error).__name__}: {error}"


def main(arguments: Sequence[str]) -> None:
    """The process: renders until the parent closes the channel."""
    channel, _ = connect(arguments)
    compiled: OrderedDict[str, Any] = OrderedDict()
    while True:
        try:
            source, names = channel.receive()
        except EOFError:
            return
        channel.send(*answer(compiled, source, names))


if __name__ == "__main__":
    main(sys.argv[1:])
