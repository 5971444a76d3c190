"""A small Hugging Face Hub on loopback, for tests and for trying things out without an account.

The real clients (huggingface_hub, transformers, peft, datasets) talk to it where HF_ENDPOINT is its address and
HF_HUB_DISABLE_XET is 1, in which case they transfer over plain LFS:

    with LocalHub(tmp_path) as hub:
        HfApi(endpoint=hub.url, token=hub.token("me")).create_repo("me/model")          # in this process
        subprocess.run([...], env={**os.environ, **hub.environment(hub.token("me"))})   # in another

huggingface_hub reads both variables when it is imported; a process that has done so passes `endpoint=`, and sets
`huggingface_hub.constants.HF_HUB_DISABLE_XET` to upload large files. Everything is kept in the folder, so that a hub
can be stopped and started again. A path that the hub doesn't know answers 404.

It leaves out: pull requests, discussions, organizations, Xet, .gitignore, pages in lists, building Spaces.
Run one for another process: `python -m local_hub FOLDER --port 8123`; its faults are switched on by a POST of a
`Fault` as JSON to `/__fault__` (DELETE clears them), tokens are to be had from `/__token__` by a POST of account and
role, and what it was asked is at `/__requests__`.
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

from local_hub import collection, repositories, spaces, transfer
from local_hub.access import HubError, Role, Tokens
from local_hub.faults import App, Fault, Faults, Message, Receive, Send
from local_hub.storage import Store

ROOTS = ("api", "datasets", "spaces")
NOT_HERE = "Sorry, we can't find the page you are looking for."


@dataclass
class Asked:
    """A request that came. Of the token only whether there was one; `status` is None until the answer begins."""

    method: str
    path: str
    with_token: bool
    range: str | None = None
    status: int | None = None


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it; a fault can reach the connection to close it."""

    def connection_made(self, transport: Any) -> None:
        """Hand the transport on in each request's state."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class Door:
    """What each request passes first: it is logged, its path made regular, and a fault strikes where one waits."""

    def __init__(self, app: App, faults: Faults, log: deque[Asked]) -> None:
        self.app = app
        self.faults = faults
        self.log = log

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        """An ASGI application around the app."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        # A quoted slash belongs to a branch's name or a file's path; routes are split at the others.
        regular = unquote(scope["raw_path"].decode().replace("%2F", "%252F"))
        first = path.split("/")[1]
        if first not in ROOTS and not first.startswith("__"):
            regular = f"/models{regular}"  # the one kind of repository whose addresses don't tell it
        scope = {**scope, "path": regular}
        if first.startswith("__"):
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        came_with = headers.get(b"range", b"").decode() or None
        asked = Asked(scope["method"], path, b"authorization" in headers, came_with)
        self.log.append(asked)

        async def noted(message: Message) -> None:
            asked.status = message.get("status", asked.status)
            await send(message)

        fault = self.faults.next(asked.method, path)
        try:
            await (fault.strike(self.app, scope, receive, noted) if fault else self.app(scope, receive, noted))
        except asyncio.CancelledError:
            scope["state"]["transport"].abort()  # the hub is being stopped; uvicorn would still answer with 500
            raise


def build(folder: Path, faults: Faults, log: deque[Asked]) -> FastAPI:
    """The application, with what it keeps in the folder."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    folder.mkdir(parents=True, exist_ok=True)
    app.state.store = Store(folder)
    app.state.tokens = Tokens(folder)
    app.state.shelf = collection.Shelf(folder)
    key = folder / "key"
    if not key.is_file():
        key.write_bytes(secrets.token_bytes(32))
    app.state.key = key.read_bytes()

    @app.exception_handler(HubError)
    async def refused(request: Request, error: HubError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": NOT_HERE}, 404)

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> JSONResponse:
        if any(problem["loc"][0] == "path" for problem in error.errors()):
            return JSONResponse({"error": NOT_HERE}, 404)
        return JSONResponse({"error": [problem["msg"] for problem in error.errors()]}, 400)

    @app.post("/__fault__")
    async def switch_on(fault: Fault) -> dict:
        faults.waiting.append(fault)
        return {}

    @app.delete("/__fault__")
    async def clear() -> dict:
        faults.waiting.clear()
        return {}

    @app.post("/__token__")
    async def token(account: Annotated[str, Body()], role: Annotated[Role, Body()] = "write") -> dict:
        return {"token": app.state.tokens.issue(account, role)}

    @app.get("/__requests__")
    async def requests() -> list[dict]:
        return [asdict(asked) for asked in log]

    for module in (collection, repositories, transfer, spaces):
        app.include_router(module.router)
    return app


class LocalHub:
    """A hub that runs in a thread of this process, from `start` to `stop` or as a context manager.

    `requests` is what it was asked, the last 10,000. With port 0 it takes a free one, and keeps it when it is started
    again.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = Path(folder).resolve()
        self.port = port
        self.faults = Faults()
        self.requests: deque[Asked] = deque(maxlen=10_000)
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
        """Listen; returns when requests are answered."""
        transcriber = socket.create_server(("127.0.0.1", self.port))
        self.port = transcriber.getsockname()[1]
        config = uvicorn.Config(
            Door(self.app, self.faults, self.requests), http=Connection, ws="none", lifespan="off", access_log=False,
            log_level="critical", timeout_graceful_shutdown=0,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([transcriber],), daemon=True)
        self.thread.start()
        while not self.server.started:
            if not self.thread.is_alive():
                raise RuntimeError(f"The hub could not start on port {self.port}.")
            time.sleep(0.005)

    def stop(self) -> None:
        """Stop at once: what is being answered breaks off."""
        self.server.should_exit = True
        self.thread.join()

    def token(self, account: str, role: Role = "write") -> str:
        """A token for an account, which need not have been there before: "write" for its own namespace, or "read"."""
        return self.app.state.tokens.issue(account, role)

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Variables for a process that is to talk to this hub and to no other, with caches of its own (HF_HOME)."""
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
        """Switch a `Fault` on; `match` is searched for in the path."""
        self.faults.waiting.append(Fault(kind=kind, match=match, times=times, **options))

    def falsify(self, repo: str, path: str, name: str | None = None, size: int | None = None) -> None:
        """List a file of a model repository under another name or with another size than it has."""
        repository = self.app.state.store.find("models", repo)
        files = repository.at().files
        file = files.pop(path)
        files[name or path] = file.model_copy(update={"size": file.size if size is None else size})
        self.app.state.store.save(repository)

    def clear_faults(self) -> None:
        """Switch all faults off."""
        self.faults.waiting.clear()
