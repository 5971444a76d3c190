"""The program of the child process: runs one engine and answers the parent's calls.

`python -m inference.engines.isolation.engine_process DESCRIPTOR PARENT LIMITS ENGINE OPTIONS`. It ends when its parent
ends.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from inference.engines import ENGINES, ModelFiles
from inference.engines.isolation.messages import arguments_from_json, files_to_json
from inference.errors import LabError
from inference.processes.channel import Channel
from inference.processes.child import connect

HEARTBEAT = 0.5  # seconds
STALLED = 120.0  # seconds after which an answer that nobody reads ends


class Server:
    """Receives calls and answers each one in a thread of its own."""

    def __init__(self, channel: Channel, name: str, options: dict[str, Any]) -> None:
        self.channel = channel
        module = importlib.import_module(ENGINES[name].module)
        self.engine = module.Engine(**options) if options else module.Engine.from_environment()
        # Sent before the files are opened, so that the parent knows them even if they crash this process.
        self.engine.on_load = self.report_load
        self.requests: dict[int, queue.SimpleQueue[str]] = {}  # "next" and "close" of each call
        self.cancelled: dict[int, threading.Event] = {}

    def run(self) -> None:
        """Receive messages until the parent ends. Raises EOFError or OSError then."""
        threading.Thread(target=self.beat, daemon=True).start()
        while True:
            number, message, *rest = self.channel.receive()
            if message == "call":
                self.requests[number], self.cancelled[number] = queue.SimpleQueue(), threading.Event()
                threading.Thread(target=self.answer, args=(number, *rest), daemon=True).start()
            elif message == "cancel" and number in self.cancelled:
                self.cancelled[number].set()
            elif number in self.requests:
                self.requests[number].put(message)

    def beat(self) -> None:
        """Tell the parent regularly that this process is alive."""
        with suppress(OSError):
            while True:
                self.channel.send(None, "alive", self.engine.seconds_in_step())
                time.sleep(HEARTBEAT)

    def report_load(self, files: ModelFiles, loading: bool) -> None:
        """Tell the parent which files are being opened."""
        self.channel.send(None, "loading" if loading else "loaded", files_to_json(files))

    def answer(self, number: int, method: str, arguments: list[Any]) -> None:
        """Run one call and send its result."""
        try:
            values = arguments_from_json(method, arguments)
            if method == "stream":
                self.stream(number, values)
            else:
                result = getattr(self.engine, method)(*values)
                self.channel.send(number, "value", asdict(result) if method == "score" else result)
        except LabError as error:
            self.channel.send(number, "error", str(error))
        except OSError:
            os._exit(0)  # the parent has ended
        except Exception as error:  # shown to the visitor who asked
            self.channel.send(number, "error", f"The engine failed ({type(error).__name__}: {error}): ask again.")
        finally:
            del self.requests[number], self.cancelled[number]

    def stream(self, number: int, arguments: list[Any]) -> None:
        """Send each chunk of an answer when the parent asks for it."""
        chunks = self.engine.stream(*arguments, self.cancelled[number].is_set)
        for chunk in chunks:
            self.channel.send(number, "chunk", asdict(chunk))
            try:
                request = self.requests[number].get(timeout=STALLED)
            except queue.Empty:
                chunks.close()
                raise LabError(
                    f"The answer was stopped, because it was not read for {STALLED:.0f} s: ask again."
                ) from None
            if request == "close":
                chunks.close()
                return
        self.channel.send(number, "end", None)


def main(arguments: Sequence[str]) -> None:
    """Answer the parent's calls. ENGINE's constructor gets OPTIONS, a JSON object."""
    channel, (name, options) = connect(arguments)
    try:
        Server(channel, name, json.loads(options)).run()
    except (EOFError, OSError):
        os._exit(0)  # at once, because nobody reads the answers any more


if __name__ == "__main__":
    main(sys.argv[1:])
