"""Commands in processes of their own that start at once.

`python -m training` imports PyTorch and its libraries for about eight seconds. Here each command is a fork of one
server process that has imported them: still a process with its own arguments, environment, output and exit code. So are
the converters and the comparisons that an export starts, also in a fork. Benchmarks, notebooks, jobs and the app start
them as a user's commands do.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from huggingface_hub import constants, hf_api

from inference.settings import PROJECT
from training.export.llamacpp import convert

ENVIRONMENT = dict(os.environ)  # before any test changes it
IMPORTED = [
    "training.finetune.run", "training.finetune.trainer", "training.export.parity.measure", "training.sweeps.runner",
    "processes",
]  # fmt: skip
context = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server, unless it runs. Its imports go on while the caller continues."""
    changed = dict(os.environ)
    os.environ.clear()
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join([str(PROJECT), str(PROJECT / "tests")]))
    try:
        context.set_forkserver_preload(IMPORTED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(changed)


def fork_converters() -> None:
    """Let the exports of this process run llama.cpp's converters as forks."""
    convert.run_python = run_forked


def read_environment(environment: dict[str, str]) -> None:
    """In the fork: take another environment, also for the libraries that read it while they are imported."""
    import datasets.config

    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    importlib.reload(constants)
    importlib.reload(datasets.config)
    hf_api.api.endpoint = constants.ENDPOINT


def run_python(arguments: tuple[str, ...], environment: dict[str, str], out: str, error: str) -> None:
    """In the fork: do what `python ARGUMENTS` does, where these begin with -m MODULE, -c CODE or -P SCRIPT."""
    from training.sweeps import runner

    read_environment(environment)
    # Without this, a fork's own processes would come from a new server, which imports everything again.
    forkserver._forkserver.ensure_running = resource_tracker.ensure_running
    fork_converters()
    runner.PROCESSES = multiprocessing.get_context("fork")  # no thread runs yet
    for number, path in ((1, out), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    kind, what, *rest = arguments
    sys.argv, sys.path[0] = [kind, *rest], str(PROJECT)
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        elif kind == "-P":
            runpy.run_path(what, run_name="__main__")
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


class Forked:
    """A command in a fork of the server, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, *arguments: str, out: str = os.devnull, error: str = os.devnull, **environment: str) -> None:
        start_server()
        self._process = context.Process(target=run_python, args=(arguments, os.environ | environment, out, error))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Kills it and raises TimeoutError after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"the command ran longer than {timeout} s")
        return self._process.exitcode

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()


def run_forked(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python ARGUMENTS` in a fork to its end, 600 s at most."""
    with tempfile.TemporaryDirectory() as folder:
        out, error = (Path(folder) / name for name in ("out", "error"))
        process = Forked(*arguments, out=str(out), error=str(error), **environment)
        code = process.wait(600)
        return subprocess.CompletedProcess(arguments, code, out.read_text("utf-8"), error.read_text("utf-8"))
