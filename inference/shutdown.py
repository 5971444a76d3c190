"""How this process ends: it refuses new work, and running work gets some time to finish."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from inference import metrics
from inference.errors import LabError

RESTARTING = "The page is restarting: ask again in a minute."


class Restarting(LabError):
    """The process is about to end."""


class Shutdown:
    """Counts the running work. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self.begun = False  # new work is refused
        self.stopping = False  # running work must end now

    @property
    def running(self) -> int:
        """How many answers and transcriptions are under way."""
        return self._running

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around an answer or a transcription. Raises Restarting if the process is about to end."""
        with self._changed:
            if self.begun:
                metrics.count_refusal("restarting")
                raise Restarting(RESTARTING)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def begin(self) -> None:
        """Refuse new work from now on."""
        with self._changed:
            self.begun = True

    def wait(self, seconds: float) -> bool:
        """Wait until no work runs. Returns False if some still runs after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, seconds)

    def stop_work(self) -> None:
        """Ask the running work to stop: answers end within one token."""
        self.stopping = True
