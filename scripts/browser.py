"""Find the Chromium that the tests of the page use, or install one: `python -m scripts.browser`

The first of these that works: a browser on the PATH; Playwright's own, downloaded if it is not there; the package
`chromium` of Debian. Packages are installed only by root or if sudo asks for no password. Without a browser the exit
code is 0 and one sentence says so: the tests of the page are then skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DOWNLOAD_SECONDS = 600
PACKAGE_SECONDS = 600
# apt-get gives up on a server that does not respond, instead of after minutes
APT_GET = ("apt-get", "-qq", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")


def find_browser() -> str | None:
    """The path of a Chromium that starts, or None."""
    for path in filter(None, map(shutil.which, NAMES)):
        if starts(path):
            return path
    downloaded = playwright_path()
    return downloaded if downloaded and starts(downloaded) else None


def starts(path: str) -> bool:
    """Whether the program runs. Ubuntu's `chromium-browser` only asks to install a snap; system libraries may lack."""
    return succeeds([path, "--version"], 30)


def playwright_path() -> str | None:
    """Where Playwright keeps its own Chromium, or None if it has not downloaded one."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        return None
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def install_browser() -> str | None:
    """Install Chromium and return its path, or None if that is not possible."""
    print("No Chromium on the PATH: Playwright downloads one.", file=sys.stderr)
    playwright = [sys.executable, "-m", "playwright"]
    if succeeds([*playwright, "install", "chromium"], DOWNLOAD_SECONDS, PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT="10000"):
        if find_browser() is None and (root := as_root()) is not None:
            succeeds([*root, *playwright, "install-deps", "chromium"], PACKAGE_SECONDS)
        if path := find_browser():
            return path
    if shutil.which("apt-get") and (root := as_root()) is not None:
        print("Playwright's Chromium is not available: apt-get installs the package chromium.", file=sys.stderr)
        succeeds([*root, *APT_GET, "update"], PACKAGE_SECONDS)
        succeeds([*root, *APT_GET, "install", "--yes", "--no-install-recommends", "chromium"], PACKAGE_SECONDS)
    return find_browser()


def as_root() -> list[str] | None:
    """What to write before a command that root must run; None if this user can't become root without a password."""
    if os.geteuid() == 0:
        return []
    return ["sudo", "-n"] if shutil.which("sudo") and succeeds(["sudo", "-n", "true"], 10) else None


def succeeds(command: list[str], seconds: float, **environment: str) -> bool:
    """Run a command for at most `seconds` without its output; whether its exit code is 0."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", **environment}
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
        )
    except OSError:
        return False
    try:
        return process.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started, such as Playwright's downloader, too
        process.wait()


if __name__ == "__main__":
    if path := find_browser() or install_browser():
        print(path)
    else:
        print("There is no Chromium: the tests of the page are skipped. Install Chromium to run them.", file=sys.stderr)
