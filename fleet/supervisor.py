"""Starts and ends the fleet: supervisord with `supervisord.conf`, and the processes that something killed left behind.

vLLM's server has child processes that outlive it if it is killed. Every process of a fleet inherits FLEET_STATE, and
supervisord gives each one SUPERVISOR_PROCESS_NAME: by these the left ones are found.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fleet.settings import FleetSettings, port
from inference.errors import LabError
from inference.settings import PROJECT

CONFIGURATION = PROJECT / "fleet" / "supervisord.conf"
BIN = Path(sys.executable).parent
END_TIMEOUT = 40.0  # seconds; supervisord kills a process that has not ended after 20


def environment(settings: FleetSettings) -> dict[str, str]:
    """The environment of supervisord and of all that it starts."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLEET_STATE": str(settings.state),
        "FLEET_SOCKET": str(settings.state / "supervisor.sock"),
        "FLEET_PYTHON": sys.executable,
        "FLEET_REPLICAS": str(len(settings.replica_urls)),
    }


def start(settings: FleetSettings) -> None:
    """Become supervisord, until Ctrl-C or `stop`. Raises LabError if the fleet runs or one of its ports is taken."""
    if supervisor_pid(settings):
        raise LabError("The fleet is already running: end it with `make fleet-stop`.")
    settings.state.mkdir(parents=True, exist_ok=True)
    (settings.state / "adapters").mkdir(exist_ok=True)
    kill_left(settings)
    for number in [*map(port, settings.replica_urls), port(settings.router_url), settings.page_port]:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) == 0:
                raise LabError(f"Port {number} is taken: stop the program that uses it, or change fleet/cpu.env.")
    os.chdir(PROJECT)
    os.execve(BIN / "supervisord", ["supervisord", "--configuration", str(CONFIGURATION)], environment(settings))


def stop(settings: FleetSettings) -> None:
    """End the fleet and everything that it left. Does nothing if nothing runs."""
    if pid := supervisor_pid(settings):
        supervisorctl(settings, "shutdown")
        deadline = time.monotonic() + END_TIMEOUT
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
    kill_left(settings)


def supervisorctl(settings: FleetSettings, *arguments: str) -> str:
    """The output of supervisorctl."""
    command = [str(BIN / "supervisorctl"), "--configuration", str(CONFIGURATION), *arguments]
    return subprocess.run(
        command, env=environment(settings), cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout  # fmt: skip


def supervisor_pid(settings: FleetSettings) -> int | None:
    """The process id of the supervisord that runs this fleet."""
    answer = supervisorctl(settings, "pid").strip()
    return int(answer) if answer.isdecimal() else None


def left(settings: FleetSettings, name: str | None = None) -> Iterator[psutil.Process]:
    """The processes of this fleet, or those of its process `name`, without this process and those that started it."""
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            variables = process.environ()
        except psutil.Error:  # another user's, or it has ended
            continue
        same = variables.get("FLEET_STATE") == str(settings.state)
        if same and process.pid not in ours and name in (None, variables.get("SUPERVISOR_PROCESS_NAME")):
            yield process


def kill_left(settings: FleetSettings, name: str | None = None) -> None:
    """Kill what `left` finds, and wait until the memory is free."""
    processes = list(left(settings, name))
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
