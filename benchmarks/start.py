"""How long from `python app.py` to a page, and how much of it is importing gradio? Part of `make bench`"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

from inference.settings import PROJECT


def seconds_to_page() -> float:
    """Start the app on a free port and ask until the page answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py"], cwd=PROJECT, env={**os.environ, "PORT": str(port)}, stdout=subprocess.DEVNULL
    )
    try:
        while app.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                return time.perf_counter() - started
            except OSError:
                time.sleep(0.02)
        raise SystemExit("app.py ended before its page answered")
    finally:
        app.terminate()
        app.wait()


def seconds_to_import() -> float:
    """A bare interpreter that imports gradio."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import gradio"], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure both five times in turns and print the medians."""
    pages, imports = zip(*[(seconds_to_page(), seconds_to_import()) for _ in range(5)], strict=True)
    print("| what | measured | expected |\n|---|---|---|")
    print(f"| page answers, s (median of 5) | {statistics.median(pages):.1f} | < 4 |")
    print(f"| of it importing gradio, s | {statistics.median(imports):.1f} | |")


if __name__ == "__main__":
    main()
