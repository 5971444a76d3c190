"""Starts and ends the fleet: supervisord with `supervisord.conf`, and the processes that something killed left behind.

vLLM's server has child processes that outlive it if it is killed, and hold its memory. They stay in its process group,
which each of the fleet's processes notes in the folder of logs.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from fleet.settings import FleetSettings, port
from inference.errors import LabError
from inference.settings import PROJECT

CONFIGURATION = PROJECT / "fleet" / "supervisord.conf"
BIN = Path(sys.executable).parent
CLOCK_CHANGE = 2.0  # seconds by which the start of one process may differ between two looks
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
    """The output of supervisorctl. Raises LabError if it is not installed."""
    if not (BIN / "supervisorctl").exists():
        raise LabError("The fleet has an environment of its own, and this is another: start it with `make fleet`.")
    command = [str(BIN / "supervisorctl"), "--configuration", str(CONFIGURATION), *arguments]
    return subprocess.run(
        command, env=environment(settings), cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout  # fmt: skip


def supervisor_pid(settings: FleetSettings) -> int | None:
    """The process id of the supervisord that runs this fleet."""
    answer = supervisorctl(settings, "pid").strip()
    return int(answer) if answer.isdecimal() else None


def remember(settings: FleetSettings, name: str) -> None:
    """Note that this process is the fleet's process `name`. supervisord made it the leader of a process group."""
    note = settings.state / f"{name}.new"
    note.write_text(f"{os.getpid()} {psutil.Process().create_time()}", encoding="utf-8")
    note.replace(settings.state / f"{name}.group")  # others never read a part of it


def kill_left(settings: FleetSettings, name: str = "*") -> None:
    """Kill what is left of the fleet's process `name`, or of all, and wait until its memory is free."""
    processes = [process for file in settings.state.glob(f"{name}.group") for process in group(file)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def group(file: Path) -> list[psutil.Process]:
    """The processes of a noted group that still run, without this one."""
    number, created = file.read_text(encoding="utf-8").split()
    with suppress(psutil.NoSuchProcess):
        # The kernel gives a number away only when no process of its group is left.
        if abs(psutil.Process(int(number)).create_time() - float(created)) > CLOCK_CHANGE:
            return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == int(number) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]
