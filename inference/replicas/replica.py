"""One vLLM server that loads adapters while it runs (VLLM_ALLOW_RUNTIME_LORA_UPDATING=True).

https://docs.vllm.ai/en/latest/features/lora.html describes the requests. They go to the server itself and not through
a router, which would send each one to any replica.
"""

from __future__ import annotations

import re
from typing import Any

import httpx2

from inference.engines.remote.address import check_key, check_url
from inference.errors import LabError
from inference.validation import shorten

LIST_TIMEOUT = 3.0  # seconds
LOAD_TIMEOUT = 60.0  # seconds; a large adapter on a busy server
ALREADY_DONE = re.compile(
    r"already been loaded|cannot be found"
)  # another process loaded or unloaded it at the same time


class Unreachable(LabError):
    """The replica does not respond, as one that is starting."""


class Replica:
    """The vLLM server at `url`. Raises LabError if the URL or the key is not valid."""

    def __init__(self, url: str, api_key: str | None) -> None:
        address, self.host = check_url(url, "REMOTE_REPLICAS")
        key = check_key(api_key)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(base_url=address, headers=headers, timeout=LIST_TIMEOUT)

    def models(self) -> tuple[set[str], dict[str, str]]:
        """The names of its bases, and the path of each adapter by name. Raises LabError."""
        answer = self._request("GET", "/models", "the list of models")
        try:
            models = answer.json()["data"]
            bases = {model["id"] for model in models if not model.get("parent")}
            return bases, {model["id"]: str(model.get("root")) for model in models if model.get("parent")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(f"{self.host} did not answer as vLLM does: check REMOTE_REPLICAS.") from error

    def load(self, name: str, path: str, replace: bool) -> None:
        """Load the adapter at `path`, in place of the one of that name if `replace`. Raises LabError if the server
        refuses it, such as for a rank above its --max-lora-rank."""
        body = {"lora_name": name, "lora_path": path, "load_inplace": replace}
        self._request("POST", "/load_lora_adapter", f"the adapter {name}", json=body, timeout=LOAD_TIMEOUT)

    def unload(self, name: str) -> None:
        """Remove an adapter from its list. Running answers continue. Raises LabError."""
        self._request("POST", "/unload_lora_adapter", f"to unload {name}", json={"lora_name": name})

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def _request(self, method: str, path: str, what: str, **options: Any) -> httpx2.Response:
        try:
            answer = self._client.request(method, path, **options)
        except httpx2.HTTPError as error:
            raise Unreachable(f"The replica {self.host} is unreachable: start it, or check REMOTE_REPLICAS.") from error
        status = answer.status_code
        if status in (502, 503, 504):
            raise Unreachable(f"The replica {self.host} is not ready (status {status}): try again in a minute.")
        if status in (401, 403):
            raise LabError(f"The replica {self.host} refuses the key (status {status}): set REMOTE_API_KEY to its key.")
        if status == 404 and path == "/load_lora_adapter":
            raise LabError(
                f"The replica {self.host} loads no adapters while it runs: start it with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
            )
        if answer.is_error and not ALREADY_DONE.search(answer.text):
            raise LabError(f"The replica {self.host} refuses {what} ({reason(answer)}): publish one that fits it.")
        return answer


def reason(answer: httpx2.Response) -> str:
    """vLLM's message, without where it was raised; or the status."""
    try:
        text = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
    inner = text.partition("Worker failed with error '")[2].partition("', please check")[0]
    return shorten((inner or text).rstrip("."), 200)
