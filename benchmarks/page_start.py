"""How long from `python app.py` to a page, and how much of it is importing gradio?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from statistics import median

from benchmarks.report import Figure, timed
from benchmarks.running_app import free_port
from inference.settings import PROJECT


def seconds_to_page() -> float:
    """Start the app on a free port and ask until the page answers."""
    port = free_port()
    with timed() as watch:
        app = subprocess.Popen(
            [sys.executable, "app.py"], cwd=PROJECT, env={**os.environ, "PORT": str(port)}, stdout=subprocess.DEVNULL
        )
        try:
            wait_for_page(app, f"http://127.0.0.1:{port}/")
        except BaseException:
            app.kill()
            raise
    app.terminate()
    app.wait()
    return watch.seconds


def wait_for_page(app: subprocess.Popen[bytes], address: str) -> None:
    """Return when the page answers. Raises RuntimeError if the app ends before."""
    while app.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).read()
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("app.py ended before its page answered: run `python app.py` to see why.")


def seconds_to_import() -> float:
    """A new interpreter that imports gradio and does nothing else."""
    with timed() as watch:
        subprocess.run([sys.executable, "-c", "import gradio"], check=True)
    return watch.seconds


def measure(quick: bool) -> list[Figure]:
    """Measure both in turns: five times, or with `quick` once."""
    rounds = 1 if quick else 5
    turns = [(seconds_to_page(), seconds_to_import()) for _ in range(rounds)]
    pages, imports = (median(turn[i] for turn in turns) for i in (0, 1))
    return [
        Figure(f"page answers, s (median of {rounds})", f"{pages:.1f}", "< 4"),
        Figure("of it importing gradio, s", f"{imports:.1f}"),
        Figure("of it the rest, s", f"{pages - imports:.1f}", "< 3"),
    ]
