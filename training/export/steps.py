"""What every step of an export does: report its time, and write its file in one piece."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


@contextmanager
def timed_step(description: str) -> Iterator[None]:
    """Print the step's description and then its seconds, on standard error."""
    started = time.perf_counter()
    typer.echo(description, err=True)
    yield
    typer.echo(f"  {time.perf_counter() - started:.1f} s", err=True)


@contextmanager
def atomic_file(out: Path) -> Iterator[Path]:
    """A `.part` file beside `out` to write to. It is renamed to `out` if the step succeeds, and removed otherwise."""
    part = out.with_name(f"{out.name}.part")
    try:
        yield part
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write to. It takes the place of `out` if the step succeeds, and is removed otherwise."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(out, ignore_errors=True)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
