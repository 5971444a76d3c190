"""Run a hub until it is interrupted: `python -m local_hub FOLDER --port 8123 --account me`

Prints its address, then the variables by which the clients of another terminal find it, with a write token.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from local_hub.server import LocalHub


def main(
    folder: Annotated[Path, typer.Argument(help="Where it keeps everything.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    account: Annotated[str, typer.Option(help="Whose write token is printed.")] = "me",
) -> None:
    """Run a Hugging Face Hub on loopback."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with LocalHub(folder, port) as hub:
        print(hub.url)
        for name, value in hub.environment(hub.token(account)).items():
            print(f"export {name}={value}", flush=True)
        stop.wait()


if __name__ == "__main__":
    typer.run(main)
