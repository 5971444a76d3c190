"""Run a local Hub until it is interrupted: `python -m local_hub FOLDER --port 8123 --account me`

Prints its address, then the variables that make clients in another terminal use it, with a write token.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from local_hub.server import LocalHub


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for all data.")],
    port: Annotated[int, typer.Option(help="Port; 0 is any free one.")] = 0,
    account: Annotated[str, typer.Option(help="Account of the write token.")] = "me",
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
