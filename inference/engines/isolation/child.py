"""The program of the child process: runs one engine and answers the parent's calls over a socket.

`python -m inference.engines.isolation.child SOCKET ENGINE OPTIONS`. It ends when its parent ends.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import resource
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inference.engines import ENGINES
from inference.errors import LabError


class Server:
    """Receives calls and answers each one in a thread of its own."""

    def __init__(self, connection: Connection, name: str, options: dict[str, Any]) -> None:
        self.connection, self._sending = connection, threading.Lock()
        module = importlib.import_module(ENGINES[name].module)
        self.engine = module.Engine(**options) if options else module.Engine.from_environment()
        # Sent before the files are opened, so that the parent knows them even if they crash this process.
        self.engine.on_load = lambda files: self.send(None, files)
        self.requests: dict[int, queue.SimpleQueue[str]] = {}  # "next" and "close" of each call
        self.cancelled: dict[int, threading.Event] = {}

    def run(self) -> None:
        """Receive messages until the parent ends. Raises EOFError or OSError then."""
        while True:
            number, message, *rest = self.connection.recv()
            if message == "call":
                self.requests[number], self.cancelled[number] = queue.SimpleQueue(), threading.Event()
                threading.Thread(target=self.answer, args=(number, *rest), daemon=True).start()
            elif message == "cancel" and number in self.cancelled:
                self.cancelled[number].set()
            elif number in self.requests:
                self.requests[number].put(message)

    def send(self, *message: object) -> None:
        """Send a message to the parent."""
        with self._sending:
            self.connection.send(message)

    def answer(self, number: int, method: str, arguments: tuple) -> None:
        """Run one call and send its result."""
        try:
            if method == "stream":
                self.stream(number, arguments)
                self.send(number, "end", None)
            else:
                self.send(number, "value", getattr(self.engine, method)(*arguments))
        except LabError as error:
            self.send(number, "error", str(error))
        except Exception as error:  # shown to the visitor who asked
            self.send(number, "error", f"The engine failed ({type(error).__name__}: {error}): ask again.")
        finally:
            del self.requests[number], self.cancelled[number]

    def stream(self, number: int, arguments: tuple) -> None:
        """Send each chunk of an answer when the parent asks for it."""
        chunks = self.engine.stream(*arguments, self.cancelled[number].is_set)
        for chunk in chunks:
            self.send(number, "chunk", chunk)
            if self.requests[number].get() == "close":
                chunks.close()
                return


def main(descriptor: str, name: str, options: str) -> None:
    """Answer the calls that come over the socket `descriptor`. `options` is JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain the model
    with suppress(OSError):  # if memory runs out, Linux kills this process and not the page
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    try:
        Server(Connection(int(descriptor)), name, json.loads(options)).run()
    except (EOFError, OSError):
        os._exit(0)  # at once, because nobody reads the answers any more


if __name__ == "__main__":
    main(*sys.argv[1:])
