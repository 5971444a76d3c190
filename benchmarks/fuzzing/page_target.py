"""Bodies of API calls, through the running app: its named endpoints, the page's own events, and uploads."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import httpx

from benchmarks.fuzzing.mutations import json_bytes, mutate_bytes
from benchmarks.fuzzing.target import EXPECTED, QUESTION, RECORDING, Input, NoAnswer, PageCrash
from benchmarks.running_app import RunningApp
from inference.errors import LabError

FILE = {"path": str(RECORDING), "meta": {"_type": "gradio.FileData"}}  # the app must not open it
PARAMETERS: dict[str, Any] = {
    "question": QUESTION, "model": "nano-emoji", "models": ["nano", "nano-emoji"], "max_tokens": 16, "seed": 1,
    "battle": "a-battle", "outcome": "A", "audio": FILE, "language": "en",
}  # fmt: skip
CALLS = ("ask", "compare", "battle", "vote", "transcribe", "ask_voice", "models", "ranking")
NO_LIMITS = {"QUESTIONS_AT_ONCE": "0", "QUESTIONS_PER_MINUTE": "0", "VOTES_PER_HOUR": "0"}
EVENT, UPLOAD = "an event of the page", "upload"
REFUSED = range(400, 500)  # HTTP statuses: the request is wrong


class ApiBodies:
    """Mutations of the body of a call. A traceback in the app's log is an unintended error."""

    seconds = 10.0

    def __init__(self, **environment: str) -> None:
        self._environment = NO_LIMITS | environment
        self._defaults: dict[str, list[Any]] = {}
        self._app: RunningApp | None = None
        self._read = 0  # characters of the log

    @property
    def app(self) -> RunningApp:
        """The app, started if it does not run."""
        if self._app is None:
            self._app, self._read = RunningApp(**self._environment).__enter__(), 0
        return self._app

    def make(self, rng: Random) -> Input:
        """See `Target`."""
        variant = rng.choice((*CALLS, "ask", "ask", EVENT, EVENT, UPLOAD))
        if variant == UPLOAD:
            body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'
            return Input(variant, mutate_bytes(body, rng))
        if variant == EVENT:
            data: list[Any] = [
                rng.choice([QUESTION, [], "nano", {}, 0.2, 16, None, FILE, False]) for _ in range(rng.randrange(12))
            ]
            event = {
                "data": data,
                "fn_index": rng.randrange(60),
                "session_hash": "abc",
                "event_data": None,
                "trigger_id": 1,
            }
            return Input(variant, json_bytes(event, rng))
        return Input(variant, json_bytes({"data": self._data(variant)}, rng))

    def run(self, given: Input) -> str:
        """See `Target`."""
        client = self.app.client(self.seconds)
        try:
            if given.variant == UPLOAD:
                headers = {"Content-Type": "multipart/form-data; boundary=x"}
                client.http.post("/upload", content=given.content, headers=headers).raise_for_status()
                answer = "uploaded"
            elif given.variant == EVENT:
                answer = self._join_queue(client.http, given.content)
            else:
                answer = ""
                for event in client.events(f"/call/{given.variant}/{client.start(given.variant, given.content)}"):
                    answer = self._result(event.name, event.data) or answer
        except httpx.HTTPStatusError as error:
            answer = self._refusal(error)
        except httpx.TimeoutException as error:
            raise NoAnswer(f"nothing in {self.seconds:g} s") from error
        except httpx.HTTPError as error:
            raise (NoAnswer if self.app.alive else PageCrash)(str(error)) from error
        finally:
            client.http.close()
            self._check_log()
        if not answer:
            raise NoAnswer("the stream ended without an answer or a message")
        return answer

    def well_behaved(self) -> bool:
        """See `Target`."""
        client = self.app.client(self.seconds)
        try:
            events = client.call("ask", question=QUESTION, model="nano-emoji", temperature=0)
            return any(EXPECTED in json.dumps(event.data) for event in events)
        finally:
            client.http.close()

    def restart(self) -> None:
        """See `Target`."""
        self.close()

    def close(self) -> None:
        """See `Target`."""
        if self._app is not None:
            self._app.close()
            self._app = None

    def _data(self, endpoint: str) -> list[Any]:
        """The values of an ordinary call."""
        if not self._defaults:
            client = self.app.client(self.seconds)
            self._defaults = {name: client.data(name, **PARAMETERS) for name in CALLS}
            client.http.close()
        return self._defaults[endpoint]

    def _result(self, name: str, data: Any) -> str:
        if name == "error":
            raise LabError(data.get("error") or "" if isinstance(data, dict) else str(data or ""))
        return json.dumps(data) if name == "complete" else ""

    def _join_queue(self, http: httpx.Client, body: bytes) -> str:
        """Send an event as the page does and wait for its end."""
        headers = {"Content-Type": "application/json"}
        response = http.post("/queue/join", content=body, headers=headers)
        response.raise_for_status()
        session = json.loads(body).get("session_hash")
        if not isinstance(session, str) or not session.isalnum():
            return "accepted"
        with http.stream("GET", "/queue/data", params={"session_hash": session}) as stream:
            stream.raise_for_status()
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise LabError(message["output"].get("error") or "")
                    return "done"
                if message.get("msg") in ("close_stream", "unexpected_error"):
                    raise LabError(message.get("message") or "")
        return ""

    def _refusal(self, error: httpx.HTTPStatusError) -> str:
        if error.response.status_code not in REFUSED:
            raise RuntimeError(f"HTTP status {error.response.status_code}") from error
        return f"refused with HTTP status {error.response.status_code}"

    def _check_log(self) -> None:
        """Raises RuntimeError if the app wrote a traceback."""
        text = self.app.log_text()
        new, self._read = text[self._read :], len(text)
        if "Traceback" in new:
            lines = [line for line in new.strip().splitlines() if line and not line.startswith((" ", "Traceback"))]
            raise RuntimeError(f"a traceback in the log: {lines[-1][:300] if lines else new[-300:]}")
