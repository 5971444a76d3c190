"""A small Hugging Face Hub on loopback, for tests and for a demo without an account.

The real clients (huggingface_hub, transformers, peft, datasets) use it if HF_ENDPOINT is its address and
HF_HUB_DISABLE_XET is 1, which makes them transfer over git-lfs:

    with LocalHub(tmp_path) as hub:
        HfApi(endpoint=hub.url, token=hub.token("me")).create_repo("me/model")          # in this process
        subprocess.run([...], env={**os.environ, **hub.environment(hub.token("me"))})   # in another

huggingface_hub reads both variables when it is imported. Later, pass `endpoint=` and set
`huggingface_hub.constants.HF_HUB_DISABLE_XET` to upload large files. All data is in the folder, so a Hub can be stopped
and started again. Unknown paths answer 404.

Not implemented: pull requests, discussions, organizations, Xet, .gitignore, pages in lists, building Spaces.

In its own process: `python -m local_hub FOLDER --port 8123`. POST a `Fault` as JSON to `/__fault__` to activate it;
DELETE clears all. POST account and role to `/__token__` for a token. `/__requests__` lists the requests.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from local_hub import collection, history, jobs, repositories, spaces, transfer
from local_hub.access import HubError, Role, Tokens
from local_hub.faults import App, Fault, Faults, Message, Receive, Send
from local_hub.storage import Store

ROOTS = ("api", "datasets", "spaces")
NOT_FOUND = "Sorry, we can't find the page you are looking for."


@dataclass
class RecordedRequest:
    """A request. `with_token`: whether it sent a token. `status` is None until the answer begins."""

    method: str
    path: str
    with_token: bool
    range: str | None = None
    status: int | None = None


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection. A fault can close it."""

    def connection_made(self, transport: Any) -> None:
        """Add the transport to the state of each request."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class RequestFilter:
    """Comes before the app: records each request, normalizes its path, and applies a fault if one matches."""

    def __init__(self, app: App, faults: Faults, log: deque[RecordedRequest]) -> None:
        self.app = app
        self.faults = faults
        self.log = log

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        """An ASGI application around the app."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        # A quoted slash is part of a branch name or file path and must not split the route.
        regular = unquote(scope["raw_path"].decode().replace("%2F", "%252F"))
        first = path.split("/")[1]
        if first not in ROOTS and not first.startswith("__"):
            regular = f"/models{regular}"  # addresses of models do not name their kind
        scope = {**scope, "path": regular}
        if first.startswith("__"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        range_header = headers.get(b"range", b"").decode() or None
        record = RecordedRequest(scope["method"], path, b"authorization" in headers, range_header)
        self.log.append(record)

        async def recording(message: Message) -> None:
            record.status = message.get("status", record.status)
            await send(message)

        fault = self.faults.next(record.method, path)
        try:
            await (fault.apply(self.app, scope, receive, recording) if fault else self.app(scope, receive, recording))
        except asyncio.CancelledError:
            scope["state"]["transport"].abort()  # the Hub is stopping; uvicorn would still answer with 500
            raise


def build(folder: Path, faults: Faults, log: deque[RecordedRequest]) -> FastAPI:
    """The application with its data in the folder."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder.mkdir(parents=True, exist_ok=True)
    app.state.store = Store(folder)
    app.state.tokens = Tokens(folder)
    app.state.collections = collection.Collections(folder)
    app.state.jobs = jobs.Jobs(folder / "jobs")
    key = folder / "key"
    if not key.is_file():
        key.write_bytes(secrets.token_bytes(32))
    app.state.key = key.read_bytes()

    add_error_handlers(app)
    add_control_routes(app, faults, log)
    for module in (collection, history, jobs, repositories, transfer, spaces):
        app.include_router(module.router)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Answer errors in the Hub's format."""

    @app.exception_handler(HubError)
    async def refused(request: Request, error: HubError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": NOT_FOUND}, 404)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        if any(problem["loc"][0] == "path" for problem in error.errors()):
            return JSONResponse({"error": NOT_FOUND}, 404)
        return JSONResponse({"error": [problem["msg"] for problem in error.errors()]}, 400)


def add_control_routes(app: FastAPI, faults: Faults, log: deque[RecordedRequest]) -> None:
    """The routes that control this Hub from another process."""

    @app.post("/__fault__")
    async def activate(fault: Fault) -> dict:
        faults.active.append(fault)
        return {}

    @app.delete("/__fault__")
    async def clear() -> dict:
        faults.active.clear()
        return {}

    @app.post("/__token__")
    async def token(account: Annotated[str, Body()], role: Annotated[Role, Body()] = "write") -> dict:
        return {"token": app.state.tokens.issue(account, role)}

    @app.get("/__requests__")
    async def requests() -> list[dict]:
        return [asdict(record) for record in log]


class LocalHub:
    """A Hub in a thread of this process, from `start` to `stop` or as a context manager.

    `requests` are the last 10,000 requests. Port 0 is any free port; it stays the same after a restart.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.port = port
        self.faults = Faults()
        self.requests: deque[RecordedRequest] = deque(maxlen=10_000)
        self.app = build(self.folder, self.faults, self.requests)

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; returns when it answers requests."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = RequestFilter(self.app, self.faults, self.requests)
        config = uvicorn.Config(
            app, http=Connection, ws="none", lifespan="off", access_log=False,
            log_level="critical", timeout_graceful_shutdown=0,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise RuntimeError(f"The local Hub did not start on port {self.port}: choose a free one.")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop at once. Running answers are cut, and Jobs end."""
        self.app.state.jobs.stop()
        self.server.should_exit = True
        self.thread.join()

    def token(self, account: str, role: Role = "write") -> str:
        """A token for an account, new or known. "write" allows changes in the account's own namespace."""
        return self.app.state.tokens.issue(account, role)

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Environment variables for a process that uses this Hub only, with its own caches (HF_HOME)."""
        online = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "0")
        spared = ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1")))
        return online | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / "client"),
            "HF_TOKEN": token or "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": spared,
            "no_proxy": spared,
        }

    def fault(self, kind: str, match: str = ".*", times: int | None = 1, **options: Any) -> None:
        """Activate a `Fault` for paths in which the pattern `match` is found."""
        self.faults.active.append(Fault(kind=kind, match=match, times=times, **options))

    def falsify(self, repo: str, path: str, name: str | None = None, size: int | None = None) -> None:
        """List a file of a model repository with a false name or size."""
        repository = self.app.state.store.find("models", repo)
        files = repository.at().files
        file = files.pop(path)
        files[name or path] = file.model_copy(update={"size": file.size if size is None else size})
        self.app.state.store.save(repository)

    def lose_machine(self, job_id: str) -> None:
        """Let the machine of a Job break down."""
        self.app.state.jobs.by_id[job_id].end("ERROR", "The machine was lost")

    def clear_faults(self) -> None:
        """Clear all faults."""
        self.faults.active.clear()
