"""An engine in a process of its own: what a file or a model does to it can't take the page down.

llama.cpp ends its process where an assertion fails, and strangers' files can make one fail. `Isolated` has the protocol
of an engine and passes each call to a child process, which runs the engine of the given name; many calls at once go
over one socket. A chunk is sent when it is asked for, so an answer that nobody reads on or that is stopped ends as it
does in one process. When the child dies, whoever waited for it gets a sentence and the next question starts another.

The child is `python -m inference.engines.isolation`; it ends when its parent does.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from inference.engines import ENGINES, Chunk, Message, ModelFiles, Sampling, Scored
from inference.errors import LabError
from inference.settings import PROJECT

LOOK = 0.05  # seconds between two looks at whether an answer is still wanted
PATIENCE = 1.0  # seconds for a word about the memory, 20 times as many for an end in order
OWN_FAULT = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


@dataclass(eq=False)
class Call:
    """A call, with the model that is run for it. `events` gets (kind, value) pairs from the child, or that it died."""

    number: int
    model: ModelFiles | None
    events: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)


class Child:
    """The other process, as long as it lives. Raises OSError where it can't be spoken to any more."""

    def __init__(self, name: str, options: dict, died: Callable[[Child, str], None]) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inference.engines.isolation", str(theirs.fileno()), name, json.dumps(options)],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            # Without it llama.cpp has a debugger look at its end, where there is one.
            env={**os.environ, "PYTHONPATH": path, "GGML_NO_BACKTRACE": "1"},
        )  # fmt: skip
        theirs.close()
        self.connection = Connection(ours.detach())
        self.calls: dict[int, Call] = {}
        self.opened: ModelFiles | None = None  # what it is reading into memory
        self.dead = False
        self._died, self._sending = died, threading.Lock()
        self._said: deque[str] = deque(maxlen=20)
        self._listener = threading.Thread(target=self._listen_to_stderr, daemon=True)
        self._listener.start()
        threading.Thread(target=self._receive, daemon=True).start()

    def send(self, *message: object) -> None:
        """Pass a message on."""
        with self._sending:
            self.connection.send(message)

    def end(self) -> None:
        """Let it go: it ends when nobody is at the other end any more."""
        self.process.kill()
        self.process.wait()

    def _listen_to_stderr(self) -> None:
        for line in self.process.stderr:
            self._said.append(line.decode("utf-8", "replace").strip()[:300])

    def _receive(self) -> None:
        try:
            while True:
                number, *event = self.connection.recv()
                if number is None:
                    (self.opened,) = event
                elif call := self.calls.get(number):
                    call.events.put(event)
        except (EOFError, OSError):
            self.dead = True
            self.connection.close()
            self.process.kill()
            self.process.wait()
            self._listener.join(PATIENCE)
            self._died(self, self._reason())

    def _reason(self) -> str:
        """What it said last, else how it ended."""
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "it was killed, most likely since the memory was full"
        said = [line for line in self._said if "failed" in line or "rror" in line] or list(self._said)
        how = signal.Signals(-code).name if code < 0 else f"code {code}"
        return said[-1].rpartition(": ")[2].rstrip(".") if said else how


class Isolated:
    """The engine `name` in a process of its own; `options` go to its constructor, without any it is made from the
    environment."""

    def __init__(self, name: str, **options: object) -> None:
        self.name, self._options = name, options
        self._child: Child | None = None
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._crashed: dict[tuple, str] = {}  # what ended a child, by its files as they were

    def stream(
        self, model: ModelFiles, messages: Sequence[Message], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """See `inference.engines.Engine.stream`."""
        if self._child is None:
            yield Chunk(waiting="loading")
        child, call = self._begin("stream", model, list(messages), sampling)
        stopped = over = False
        try:
            while not over:
                try:
                    kind, value = call.events.get(timeout=LOOK)
                except queue.Empty:
                    kind, value = "nothing", None
                if not stopped and cancelled():
                    stopped = True
                    self._tell(child, call, "cancel")
                if kind == "chunk":
                    yield value
                    if not stopped and cancelled():
                        stopped = True
                        self._tell(child, call, "cancel")
                    self._tell(child, call, "next")
                elif kind != "nothing":
                    over = True
                    self._result(kind, value)
        finally:
            child.calls.pop(call.number, None)
            if not over:
                self._tell(child, call, "close")

    def score(self, model: ModelFiles, messages: Sequence[Message], answer: str) -> Scored:
        """See `inference.engines.Engine.score`."""
        return self._ask("score", model, list(messages), answer)

    def in_memory(self, model: ModelFiles) -> bool:
        """Whether answering would load nothing; False as well where the child is too busy to tell."""
        if self._child is None or self._child.dead:
            return False
        try:
            return self._ask("in_memory", model, patience=PATIENCE)
        except (LabError, queue.Empty):
            return False

    def close(self) -> None:
        """Free the memory: the process ends. Answers that are being given end with a sentence."""
        child = self._child
        if child is None or child.dead:
            return
        with suppress(LabError, queue.Empty):  # it is ended all the same
            self._ask("close", patience=20 * PATIENCE)
        with self._lock:
            self._child = None
        child.end()

    def _begin(self, method: str, *arguments: object) -> tuple[Child, Call]:
        model = None if method in ("in_memory", "close") else arguments[0]  # what is run to answer the call
        if model and (known := self._crashed.get(state_of(model))):
            raise LabError(known)
        with self._lock:
            if self._child is None or self._child.dead:
                self._child = Child(self.name, self._options, self._bury)
            child, call = self._child, Call(next(self._numbers), model)
            child.calls[call.number] = call
        with suppress(OSError):  # whoever listens to the child tells its end
            child.send(call.number, "call", method, arguments)
        return child, call

    def _ask(self, method: str, *arguments: object, patience: float | None = None) -> object:
        """Call a method that returns. Raises queue.Empty after `patience` seconds without an answer."""
        child, call = self._begin(method, *arguments)
        try:
            return self._result(*call.events.get(timeout=patience))
        finally:
            child.calls.pop(call.number, None)

    def _tell(self, child: Child, call: Call, word: str) -> None:
        with suppress(OSError):  # whoever listens to the child tells its end
            child.send(call.number, word)

    def _result(self, kind: str, value: object) -> object:
        if kind == "error":
            raise LabError(value)
        return value

    def _bury(self, child: Child, reason: str) -> None:
        """Tell everyone who waited for the child that it died, and remember whose file it was."""
        with self._lock:
            calls = list(child.calls.values())
            culprits = {child.opened} if child.opened else {call.model for call in calls if call.model}
            for call in calls:
                if call.model in culprits:
                    call.events.put(("error", self._crash(call.model, reason)))
                else:
                    call.events.put(("error", f"{self.name} crashed over another answer ({reason}): ask again."))
            if len(culprits) == 1 and -child.process.returncode in OWN_FAULT:
                (culprit,) = culprits
                self._crashed[state_of(culprit)] = self._crash(culprit, reason)

    def _crash(self, model: ModelFiles, reason: str) -> str:
        name = model.base.name
        return f"{self.name} crashed while it ran {name} ({reason}): choose another model, or ask again."


def state_of(model: ModelFiles) -> tuple:
    """The files and what tells whether they have changed."""
    found = [path for path in (model.base, model.adapter) if path]
    return tuple((path, *((s := path.stat()).st_mtime_ns, s.st_size)) if path.exists() else (path,) for path in found)


class Server:
    """The child's side: calls come in, a thread for each answers."""

    def __init__(self, connection: Connection, name: str, options: dict) -> None:
        self.connection, self._sending = connection, threading.Lock()
        module = importlib.import_module(ENGINES[name].module)
        self.engine = module.Engine(**options) if options else module.Engine.from_environment()
        # Sent before they are opened: the parent has it even where that ends this process.
        self.engine.opening = lambda files: self.send(None, files)
        self.words: dict[int, queue.SimpleQueue] = {}
        self.cancelled: dict[int, threading.Event] = {}

    def run(self) -> None:
        """Take calls until the parent is gone."""
        while True:
            number, word, *rest = self.connection.recv()
            if word == "call":
                self.words[number], self.cancelled[number] = queue.SimpleQueue(), threading.Event()
                threading.Thread(target=self.answer, args=(number, *rest), daemon=True).start()
            elif word == "cancel" and number in self.cancelled:
                self.cancelled[number].set()
            elif number in self.words:
                self.words[number].put(word)

    def send(self, *message: object) -> None:
        """To the parent; where it is gone, `run` finds that out."""
        with self._sending:
            self.connection.send(message)

    def answer(self, number: int, method: str, arguments: tuple) -> None:
        """Carry out one call."""
        try:
            if method == "stream":
                self.send(number, "end", self.stream(number, arguments))
            else:
                self.send(number, "value", getattr(self.engine, method)(*arguments))
        except LabError as error:
            self.send(number, "error", str(error))
        except Exception as error:  # told to the one whose question it was
            self.send(number, "error", f"The engine failed ({type(error).__name__}: {error}): ask again.")
        finally:
            del self.words[number], self.cancelled[number]

    def stream(self, number: int, arguments: tuple) -> None:
        """Send chunks as they are asked for."""
        chunks = self.engine.stream(*arguments, self.cancelled[number].is_set)
        for chunk in chunks:
            self.send(number, "chunk", chunk)
            if self.words[number].get() == "close":
                chunks.close()
                return


def main(descriptor: str, name: str, options: str) -> None:
    """Serve the parent at the other end of the socket `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the model would be in it
    with suppress(OSError):  # where memory runs out, Linux ends this process and not the page
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    try:
        Server(Connection(int(descriptor)), name, json.loads(options)).run()
    except (EOFError, OSError):
        os._exit(0)  # at once: nobody is there for whom anything could still be done


if __name__ == "__main__":
    main(*sys.argv[1:])
