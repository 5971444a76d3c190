"""llama-server in a process of its own, asked over HTTP with the token ids of a prompt."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from benchmarks.reference_server.build import LIBRARIES
from benchmarks.running_app import free_port

START_SECONDS = 120.0
CELLS = 16_384  # tokens of the KV cache for all requests, as many as this project's engine takes at most


class ReferenceServer:
    """llama-server with a base and adapters, from `with` to its end.

    Args:
        program: the built llama-server.
        slots: how many requests it answers at once.
    """

    def __init__(self, program: Path, base: Path, adapters: Sequence[Path], threads: int, slots: int) -> None:
        port = free_port()
        loras = ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"] if adapters else []
        self._command = [
            str(program), "--model", str(base), *loras, "--host", "127.0.0.1", "--port", str(port), "--offline",
            "--threads", str(threads), "--parallel", str(slots), "--kv-unified", "--ctx-size", str(CELLS),
        ]  # fmt: skip
        self._adapters = len(adapters)
        self._http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False,
            limits=httpx.Limits(max_connections=slots, max_keepalive_connections=slots),
        )  # fmt: skip

    def __enter__(self) -> ReferenceServer:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES), "DYLD_LIBRARY_PATH": str(LIBRARIES)}
        self._process = subprocess.Popen(
            self._command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if self._http.get("/health").is_success:
                    return self
            time.sleep(0.01)
        self.close()
        raise RuntimeError(f"llama-server did not start: run `{' '.join(self._command)}` to see why.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._http.close()
        self._process.kill()
        self._process.wait()

    def ask(self, prompt: Sequence[int], adapter: int | None, max_tokens: int) -> int:
        """Answer the token ids of a prompt greedily, under the adapter of that index. Returns the number of tokens. The
        answer comes in one piece, so that its reader costs the server nothing."""
        body: dict[str, Any] = {
            "prompt": list(prompt), "n_predict": max_tokens, "temperature": 0,
            "lora": [{"id": number, "scale": float(number == adapter)} for number in range(self._adapters)],
        }  # fmt: skip
        answer = self._http.post("/completion", json=body).raise_for_status().json()
        return int(answer["tokens_predicted"])
