"""Run the commands: a `LabError` becomes one sentence on standard error and exit code 2, without a traceback."""

from __future__ import annotations

import sys

import typer

from inference.errors import LabError


def run(app: typer.Typer) -> None:
    """Run a typer application for the terminal."""
    # Windows consoles and pipes may be set to less than Unicode; answers are full of emoji.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        app()
    except LabError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
