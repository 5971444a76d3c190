"""Notice an engine that hangs while its server still answers.

vLLM's own check of its health does not ask the engine (https://github.com/vllm-project/vllm/issues/39863). A replica
hangs if it gives no token although asked, and its engine finishes no step meanwhile. One that is busy finishes steps,
and one that loads refuses the question.

`python -m fleet watch` looks with it and ends what hangs. A container checks its health with this file alone, so it
needs only Python: `python3 watch.py URL MODEL SECONDS` ends with 0 if the replica answers and with 3 if it hangs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from http.client import HTTPException
from urllib.request import Request, urlopen

SERVER_TIMEOUT = 30.0  # seconds for the server's figures, with which a busy one is late
STEPS = re.compile(r"^vllm:iteration_tokens_total_count\{.*\} (\S+)$", re.MULTILINE)


def probe(url: str, model: str, seconds: float, key: str | None) -> str:
    """Ask for one token and wait `seconds` for it. Returns “answers”, “busy”, “hangs” or, if the replica ends, loads or
    refuses the question, “unavailable”."""
    body = json.dumps({"model": model, "prompt": "A", "max_tokens": 1}).encode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        before = steps(url)
        try:
            urlopen(Request(f"{url}/v1/completions", body, headers), timeout=seconds).close()
        except TimeoutError:
            after = steps(url)
            return "hangs" if after is None or after == before != [] else "busy"
    except (OSError, HTTPException):
        return "unavailable"
    return "answers"


def steps(url: str) -> list[str] | None:
    """How many steps each engine of the server has finished. None if the server is silent. Raises OSError."""
    try:
        with urlopen(f"{url}/metrics", timeout=SERVER_TIMEOUT) as response:
            return STEPS.findall(response.read().decode())
    except TimeoutError:
        return None


if __name__ == "__main__":
    state = probe(sys.argv[1], sys.argv[2], float(sys.argv[3]), os.environ.get("VLLM_API_KEY"))
    sys.exit({"answers": 0, "hangs": 3}.get(state, 1))
