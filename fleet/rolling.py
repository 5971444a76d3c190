"""A rolling restart: one replica after the other, while the others answer.

A new version of vLLM, or other settings of a replica, come into force without a pause.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from fleet.settings import FleetSettings
from fleet.supervisor import supervisorctl
from inference.errors import LabError

FINISH_TIMEOUT = 120.0  # seconds for the answers that a replica has begun
QUIET = 2.0  # seconds: a question that the router has just sent is not counted yet
START_TIMEOUT = 900.0  # seconds until a replica has loaded its model
RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", re.MULTILINE)


def restart(settings: FleetSettings) -> Iterator[str]:
    """Restart each replica when its answers are complete. Yields a line after each. Raises LabError if the router or a
    replica does not answer; the replicas after it are left as they were."""
    for number, url in enumerate(settings.replica_urls, 1):
        began = time.monotonic()
        change_workers(settings, "remove_worker", url, 30)
        try:
            wait_until_idle(url)
            supervisorctl(settings, "restart", f"replica:replica-{number}")
        finally:
            change_workers(settings, "add_worker", url, START_TIMEOUT)  # the router waits until it answers
        yield f"Replica {number} restarted in {time.monotonic() - began:.0f} s."


def change_workers(settings: FleetSettings, what: str, url: str, timeout: float) -> None:
    """Ask the router to add or remove a replica. Raises LabError if it does not do so within `timeout` seconds."""
    request = Request(f"{settings.router_url}/{what}?url={quote(url, safe='')}", method="POST")
    try:
        urlopen(request, timeout=timeout).close()
    except (URLError, OSError) as error:
        raise LabError(f"The router did not {what.replace('_', ' ')} {url}: look into {settings.state}.") from error


def wait_until_idle(url: str) -> None:
    """Wait until a replica has answered nobody for QUIET, FINISH_TIMEOUT at most. One that does not respond is idle."""
    began = busy = time.monotonic()
    while time.monotonic() < min(busy + QUIET, began + FINISH_TIMEOUT):
        try:
            with urlopen(f"{url}/metrics", timeout=5) as response:
                counts = RUNNING.findall(response.read().decode())
        except (URLError, OSError):
            return
        if any(map(float, counts)):
            busy = time.monotonic()
        time.sleep(0.2)
