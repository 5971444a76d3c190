"""The page on a simulated ZeroGPU Space: `spaces` forks its processes and pickles as there. A small server replaces
ZeroGPU's scheduler, and the CPU replaces the GPU."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import running_app
from gradio_client import Client
from gradio_client.exceptions import AppError

pytestmark = pytest.mark.xdist_group("engines")
# If `spaces` is imported without PyTorch, it simulates no GPU for PyTorch and moves nothing to one.
WITHOUT_A_GPU = """
import runpy, sys
sys.modules["torch"] = None
import spaces
del sys.modules["torch"]
runpy.run_path("app.py", run_name="__main__")
"""


@dataclass
class Scheduler:
    """A replacement of ZeroGPU's scheduler: the requests that it got, and whether it has a GPU to lend."""

    requests: list[str] = field(default_factory=list)
    has_gpu: bool = True

    def serve(self) -> ThreadingHTTPServer:
        """Start it on a free port, in a thread."""
        scheduler = self

        class Handler(BaseHTTPRequestHandler):
            """Answers as `spaces.zero.api` expects."""

            def do_POST(self) -> None:
                path = self.path.split("?")[0]
                scheduler.requests.append(path)
                self.send_response(503 if path == "/schedule" and not scheduler.has_gpu else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(
                    json.dumps({"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "a"}).encode()
                )

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture(scope="module")
def lent(tmp_path_factory) -> Iterator[tuple[Scheduler, Client]]:
    """A scheduler and a client of the page that it lends to."""
    scheduler, home = Scheduler(), tmp_path_factory.mktemp("home")
    server = scheduler.serve()
    environment = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}"}
    environment |= {"HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HUB_NAMESPACE": ""}
    with running_app(home / "log", "-c", WITHOUT_A_GPU, **environment) as url:
        client = Client(url, verbose=False)
        yield scheduler, client
    server.shutdown()


def test_each_question_is_answered_in_a_process_that_is_lent_a_gpu(lent):
    scheduler, client = lent
    assert scheduler.requests == ["/startup-report"]  # the launch reports that a function needs a GPU
    question = ("What does 🇸🇪 mean?", "nano-emoji")
    assert "Sweden" in client.predict(*question, temperature=0, api_name="/ask")
    assert scheduler.requests[1:] == ["/schedule", "/allow", "/release"]
    assert "octopus" in client.predict("What does 🐙 mean?", "nano", temperature=0, api_name="/ask")
    assert scheduler.requests[4:] == ["/schedule", "/release"]  # in the same process


def test_a_refusal_is_reported_and_the_next_question_works(lent):
    scheduler, client = lent
    with pytest.raises(AppError, match="The question is too long"):  # raised in the other process
        client.predict("x y " * 2_000, "nano", api_name="/ask")
    scheduler.has_gpu = False
    with pytest.raises(AppError, match="ZeroGPU gave no answer .No GPU was available.: ask again"):
        client.predict("What does 🐙 mean?", "nano", api_name="/ask")
    scheduler.has_gpu = True
    assert "octopus" in client.predict("What does 🐙 mean?", "nano", temperature=0, api_name="/ask")
