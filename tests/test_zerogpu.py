"""The page on a ZeroGPU Space, as far as that can be had without one: `spaces` forks its processes and pickles, a small
server stands in for ZeroGPU's scheduler, and the CPU for the GPU."""

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
# Imported as where there is no PyTorch, `spaces` neither makes it believe in a GPU nor moves anything to one.
WITHOUT_A_GPU = """
import runpy, sys
sys.modules["torch"] = None
import spaces
del sys.modules["torch"]
runpy.run_path("app.py", run_name="__main__")
"""


@dataclass
class Scheduler:
    """What stands in for ZeroGPU's scheduler: what it was asked, and whether it has a GPU to lend."""

    asked: list[str] = field(default_factory=list)
    has_gpu: bool = True

    def serve(self) -> ThreadingHTTPServer:
        """On a free port, in a thread."""
        scheduler = self

        class Handler(BaseHTTPRequestHandler):
            """Answers as `spaces.zero.api` expects."""

            def do_POST(self) -> None:
                path = self.path.split("?")[0]
                scheduler.asked.append(path)
                self.send_response(503 if path == "/schedule" and not scheduler.has_gpu else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(
                    json.dumps({"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "a"}).encode()
                )

            def log_message(self, *_: object) -> None:
                """Nothing on the terminal."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


@pytest.fixture(scope="module")
def lent(tmp_path_factory) -> Iterator[tuple[Scheduler, Client]]:
    """A scheduler, and the page of which it lends to."""
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
    assert scheduler.asked == ["/startup-report"]  # the launch tells that something here wants a GPU
    question = ("What does 🇸🇪 mean?", "nano-emoji")
    assert "Sweden" in client.predict(*question, temperature=0, api_name="/ask")
    assert scheduler.asked[1:] == ["/schedule", "/allow", "/release"]
    assert "octopus" in client.predict("What does 🐙 mean?", "nano", temperature=0, api_name="/ask")
    assert scheduler.asked[4:] == ["/schedule", "/release"]  # the process was there still


def test_a_refusal_is_a_sentence_and_the_next_question_works(lent):
    scheduler, client = lent
    with pytest.raises(AppError, match="The question is too long"):  # said in the other process
        client.predict("x y " * 2_000, "nano", api_name="/ask")
    scheduler.has_gpu = False
    with pytest.raises(AppError, match="ZeroGPU gave no answer .No GPU was available.: ask again"):
        client.predict("What does 🐙 mean?", "nano", api_name="/ask")
    scheduler.has_gpu = True
    assert "octopus" in client.predict("What does 🐙 mean?", "nano", temperature=0, api_name="/ask")
