"""llama.cpp's own server with the embedded models, in a separate process: the server of the remote engine's tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from conftest import EMOJI, NANO, ONE_EPOCH
from fleet_run import free_port

from inference.settings import PROJECT

KEY = "sk-a-key-nobody-may-see"
SERVED = [NANO.name, EMOJI.name, ONE_EPOCH.name]
# `python -m llama_cpp.server` with three defaults changed. On CPUs with AMX llama.cpp crashes with its repacked weights
# (see has_amx in the llama.cpp engine), and the server has no option for them. It also penalizes repeated words
# (repeat_penalty 1.1) and drops unlikely ones (min_p 0.05), and OpenAI's API has no fields for these: greedy answers
# would not be the model's, and a different seed would not change an answer.
SERVER = """
import llama_cpp
from llama_cpp.server.types import CreateChatCompletionRequest as Body

make = llama_cpp.llama_cpp.llama_model_default_params

def without_repacking():
    params = make()
    params.use_extra_bufts = False
    return params

llama_cpp.llama_cpp.llama_model_default_params = without_repacking
Body.model_fields["repeat_penalty"].default = 1.0
Body.model_fields["min_p"].default = 0.0
Body.model_rebuild(force=True)

from llama_cpp.server.__main__ import main
main()
"""


class NanoServer:
    """A process with the nano base and its two adapters."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "server.json"
        common = {"model": str(NANO / "nano-Q8_0.gguf"), "n_ctx": 512, "n_threads": 1, "n_threads_batch": 1}
        adapters = {each.name: {"lora_path": str(each / "adapter-f16.gguf")} for each in (EMOJI, ONE_EPOCH)}
        models = [{"model_alias": name} | adapters.get(name, {}) for name in SERVED]
        server = {"host": "127.0.0.1", "port": self.port, "api_key": KEY, "interrupt_requests": False}
        self.config.write_text(json.dumps({**server, "models": [{**common, "verbose": False, **m} for m in models]}))
        self.start()
        self.wait()

    def start(self) -> None:
        """Start the process. `wait` returns when it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, "--config_file", str(self.config)],
            cwd=PROJECT, env={**os.environ, "PORT": str(self.port)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def wait(self) -> None:
        """Wait until it listens, 120 s at most."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
