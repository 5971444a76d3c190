"""Starts a confined child process and says why it ended.

The child is `python -m MODULE DESCRIPTOR PARENT LIMITS ARGUMENTS…`; its first act is `connect`, which confines it and
opens its end of the channel.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from inference.processes.channel import Channel
from inference.processes.confinement import Limits, confine, environment
from inference.settings import PROJECT

STDERR_TIMEOUT = 1.0  # seconds to wait for the last lines of a child that has ended

_spawners: dict[int, ThreadPoolExecutor] = {}  # by process: a forked process has none of its parent's threads
_spawners_lock = threading.Lock()


class Child:
    """A child process that runs `module`, as its parent sees it. Python files and `limits.readable` are all that it
    can read."""

    def __init__(self, module: str, arguments: Sequence[str], limits: Limits, **variables: str) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        code = [str(PROJECT / name) for name in ("inference", "training")]
        limits = Limits(**{**limits.as_fields(), "readable": [*code, *limits.readable], "listable": [str(PROJECT)]})
        command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid()), json.dumps(limits.as_fields())]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(os.environ, PYTHONPATH=path, **variables),
                cwd=PROJECT,
            )

        # The kernel kills a child when the *thread* that started it ends. So one thread, which stays, starts them all.
        self.process = spawner().submit(start).result()
        theirs.close()
        self.socket = ours
        self.channel = Channel(ours)
        self._stderr: deque[str] = deque(maxlen=20)
        self._stderr_reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._stderr_reader.start()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End the process and wait until it has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End the process and free what belongs to it."""
        self.kill()
        self.channel.close()

    def exit_reason(self) -> str:
        """Why it ended: the last error on its standard error, else its signal or exit code."""
        self.process.wait()
        self._stderr_reader.join(STDERR_TIMEOUT)
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "it was killed, most likely because the memory was full"
        errors = [line for line in self._stderr if "failed" in line or "rror" in line] or list(self._stderr)
        if errors:
            return errors[-1].rpartition(": ")[2].rstrip(".")
        return signal.Signals(-code).name if code < 0 else f"code {code}"

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._stderr.append(line.decode("utf-8", "replace").strip()[:300])


def spawner() -> ThreadPoolExecutor:
    """The thread of this process that starts children."""
    with _spawners_lock:
        if os.getpid() not in _spawners:
            _spawners.clear()
            _spawners[os.getpid()] = ThreadPoolExecutor(1, thread_name_prefix="spawner")
        return _spawners[os.getpid()]


def connect(arguments: Sequence[str]) -> tuple[Channel, list[str]]:
    """In the child, before anything else: confine it. Returns its channel and the arguments that are left."""
    descriptor, parent, limits, *rest = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with suppress(OSError):  # if memory runs out, Linux kills this process and not the page
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    confine(Limits(**json.loads(limits)), int(parent))
    tempfile.tempdir = "/tmp"  # no folder is writable; libraries that only ask for the name must not fail
    return Channel.from_descriptor(int(descriptor)), rest
