"""Start and end vLLM servers, a router and the page: `python -m fleet start`."""

from __future__ import annotations

import os
import signal
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import typer

from fleet import commands, rolling, supervisor
from fleet.settings import FleetSettings
from fleet.watch import probe
from inference.terminal import run

START_POLL = 1.0  # seconds
WATCH_PAUSE = 10.0  # seconds
app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.command()
def start() -> None:
    """Start the replicas, the router and the page. Ctrl-C ends them."""
    settings = FleetSettings.read()
    print(f"Starting {len(settings.replica_urls)} replicas. This takes a minute. Logs: {settings.state}", flush=True)
    supervisor.start(settings)


@app.command()
def stop() -> None:
    """End the fleet that runs, and what a killed one has left."""
    supervisor.stop(FleetSettings.read())


@app.command()
def restart() -> None:
    """Restart one replica after the other. The others answer meanwhile."""
    for line in rolling.restart(FleetSettings.read()):
        print(line, flush=True)


@app.command()
def status() -> None:
    """Show which processes run, and since when."""
    print(supervisor.supervisorctl(FleetSettings.read(), "status"), end="")


@app.command(hidden=True)
def replica(number: int) -> None:
    """Become a replica. supervisord calls this."""
    settings = FleetSettings.read()
    become(
        settings,
        f"replica-{number}",
        commands.replica_command(settings, number),
        commands.replica_environment(settings),
    )


@app.command(hidden=True)
def router() -> None:
    """Become the router. supervisord calls this."""
    settings = FleetSettings.read()
    become(settings, "router", commands.router_command(settings), {})


@app.command(hidden=True)
def page() -> None:
    """Wait until the router answers, then become the page. supervisord calls this."""
    settings = FleetSettings.read()
    while not answers(f"{settings.router_url}/v1/models"):
        time.sleep(START_POLL)
    become(settings, "page", commands.page_command(), commands.page_environment(settings))


@app.command(hidden=True)
def watch(number: int) -> None:
    """End a replica whose engine hangs, or that outlives supervisord. supervisord calls this, and restarts it."""
    settings, name = FleetSettings.read(), f"replica-{number}"

    def end(*_: object) -> None:
        supervisor.kill_left(settings, name)
        sys.exit()

    signal.signal(signal.SIGUSR1, end)  # supervisord was killed: see supervisord.conf
    while True:
        url, seconds = settings.replica_urls[number - 1], settings.hang_timeout
        if probe(url, settings.name, seconds, settings.api_key) == "hangs":
            print(f"{time.ctime()}: no token and no step for {seconds:g} s. Restarting {name}.", flush=True)
            supervisor.kill_left(settings, name)
        time.sleep(WATCH_PAUSE)


def answers(url: str) -> bool:
    """Whether `url` answers, if only that it wants a key."""
    try:
        urlopen(url, timeout=5).close()
    except HTTPError as error:
        return error.code < 500
    except (URLError, OSError):
        return False
    return True


def become(settings: FleetSettings, name: str, command: list[str], variables: dict[str, str]) -> None:
    """Replace this process, after what a killed one has left."""
    supervisor.kill_left(settings, name)
    supervisor.remember(settings, name)
    os.execvpe(command[0], command, {**os.environ, **variables})


if __name__ == "__main__":
    run(app)
