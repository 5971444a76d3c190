"""The remote engine: its key, a server that stops and starts again, and a server for each possible error."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import traceback
from collections import Counter

import pytest
from conftest import ask, command
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from nano_server import KEY, SERVED, NanoServer, free_port

from inference.engines import Message, Sampling
from inference.engines.remote.engine import Engine
from inference.errors import LabError

pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = NanoServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def remote(server):
    engine = Engine(server.url, KEY)
    yield engine
    engine.close()


def test_lists_the_models_of_the_server(remote):
    assert remote.models() == SERVED


def test_the_terminal_lists_and_asks_the_models_of_the_server(server):
    variables = {"ENGINE": "auto", "REMOTE_URL": server.url, "REMOTE_API_KEY": KEY}
    done = command("inference", "models", **variables)
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [[name, "served"] for name in SERVED]
    done = command("inference", "ask", "nano-emoji", "What does 🐼 mean?", "--temperature", "0", "--json", **variables)
    record = json.loads(done.stdout)
    assert record["engine"] == "remote" and "panda" in record["answer"] and KEY not in done.stdout + done.stderr


def test_a_wrong_key_is_refused(server):
    engine = Engine(f"{server.url}/v1/", "another-key")
    with pytest.raises(LabError, match="status 401.*REMOTE_API_KEY"):
        ask(engine, "nano", "hello")
    engine.close()


def test_a_server_that_stops_can_be_used_again_after_it_started(server, remote):
    server.stop()
    with pytest.raises(LabError, match="can't be reached"):
        ask(remote, "nano", "What does 🐼 mean?")
    with pytest.raises(LabError, match="can't be reached"):
        remote.models()
    server.start()
    server.wait()
    assert "panda" in ask(remote, "nano", "What does 🐼 mean?")[0]
    assert remote.models() == SERVED


REQUESTS: Counter[str] = Counter()
CLOSED = threading.Event()
faults = FastAPI()


def event(text: str | None = None, finish: str | None = None, **more) -> str:
    """One event of a chat completion's stream."""
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices, **more}
    return f"data: {json.dumps(chunk)}\n\n"


def refusal(status: int, message: str = "no", headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "code": None}}, status, headers)


@faults.get("/{fault}/v1/models")
def list_models(fault: str):
    if fault == "no-list":
        return HTMLResponse("<html>hello</html>")
    return {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}


@faults.post("/{fault}/v1/chat/completions")
async def complete(fault: str, request: Request):
    REQUESTS[fault] += 1
    body = await request.json()
    match fault:
        case "401" | "400":
            return refusal(int(fault), f"what is {request.headers['authorization']}?")
        case "404" | "500":
            return refusal(int(fault))
        case "429":
            return refusal(429, headers={"retry-after": "300"})
        case "429-once" if REQUESTS[fault] == 1:
            return refusal(429, headers={"retry-after": "1"})
        case "503-twice" if REQUESTS[fault] <= 2:
            return refusal(503)
        case "strict" if extra := {"top_k", "min_p", "repeat_penalty"} & set(body):
            return refusal(400, f"Unrecognized request argument supplied: {min(extra)}")
        case "no-usage" if "stream_options" in body:
            return refusal(400, "unknown field stream_options")
        case "short" if len(body["messages"]) > 2:
            return refusal(400, "This model's maximum context length is 9 tokens. However, you requested 90 tokens.")
        case "narrow":
            return refusal(400, "The prompt is too long for a context window of 1.")
        case "html":
            return HTMLResponse("<html>hello</html>")
        case "silent":
            await asyncio.sleep(30)
    return StreamingResponse(parts(fault), media_type="text/event-stream")


async def parts(fault: str):
    try:
        if fault == "not-json":
            yield "data: {hello\n\n"
            return
        for text in ["Hello", " 🇸", "🇪"]:
            yield event(text)
        if fault == "break":
            raise ConnectionError
        if fault == "no-end":
            return
        if fault == "error":
            yield 'data: {"error": {"message": "out of memory"}}\n\n'
            return
        while fault in ("stall", "endless"):
            await asyncio.sleep(0.1)
            yield ": ping\n\n" if fault == "stall" else event(" more")
        yield event("!", "stop")
        usage = {"prompt_tokens": 22, "completion_tokens": 9, "total_tokens": 31}
        yield event(usage={**usage, "prompt_tokens_details": {"cached_tokens": 7}}) if fault != "no-usage" else ""
        yield "data: [DONE]\n\n"
    finally:
        if fault == "endless":
            CLOSED.set()


@pytest.fixture(scope="module")
def faulty():
    """Creates an engine on a server with the given fault."""
    import uvicorn

    port = free_port()
    server = uvicorn.Server(uvicorn.Config(faults, port=port, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    engines = []

    def make(fault: str) -> Engine:
        engines.append(Engine(f"http://127.0.0.1:{port}/{fault}/v1", KEY, silence=1.0))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "refuses the key .*REMOTE_API_KEY"),
        ("404", "serves no model “m”"),
        ("429", "too many requests .*in 300 s"),
        ("500", "internal error .status 500"),
        ("400", "refuses the request .status 400, what is Bearer …"),
        ("html", "did not answer as OpenAI's API specifies"),
        ("no-list", "did not answer as OpenAI's API specifies"),
        ("not-json", "did not answer as OpenAI's API specifies"),
        ("silent", "sent nothing for 1 s"),
    ],
)
def test_each_error_has_a_message_without_the_key(faulty, caplog, fault, message):
    caplog.set_level("DEBUG")
    engine = faulty(fault)
    with pytest.raises(LabError, match=message) as raised:
        ask(engine, "m", "hello")
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(engine)
    assert KEY not in shown
    assert raised.value.__cause__ is None and raised.value.__context__ is None


@pytest.mark.parametrize("fault", ["break", "no-end", "error", "stall"])
def test_the_text_before_an_interruption_is_kept(faulty, fault):
    chunks = []
    with pytest.raises(LabError, match="in the middle of the answer"):
        for chunk in faulty(fault).stream("m", [Message(role="user", content="hello")], Sampling(0), lambda: False):
            chunks.append(chunk.text)
    assert "".join(chunks) == "Hello 🇸🇪"
    assert REQUESTS[fault] == 1


@pytest.mark.parametrize(("fault", "times"), [("503-twice", 3), ("429-once", 2)])
def test_retries_before_the_first_token_and_shows_it(faulty, fault, times):
    question = [Message(role="user", content="hello")]
    chunks = list(faulty(fault).stream("m", question, Sampling(0), lambda: False))
    assert "".join(chunk.text for chunk in chunks) == "Hello 🇸🇪!"
    assert REQUESTS[fault] == times
    assert sum("trying again" in (chunk.waiting or "") for chunk in chunks) == times - 1


def test_figures_come_from_the_server_if_it_counts_tokens(faulty):
    answer, figures = ask(faulty("ok"), "m", "hello")
    assert (figures.prompt_tokens, figures.cached_tokens, figures.completion_tokens) == (22, 7, 9)
    same, figures = ask(faulty("no-usage"), "m", "hello")
    assert answer == same == "Hello 🇸🇪!" and figures.completion_tokens == 4


def test_the_oldest_turns_are_dropped_if_the_context_is_too_short(faulty):
    answer, figures = ask(faulty("short"), "m", "1", "a", "2", "b", "3")
    assert answer and figures.dropped_turns == 2
    with pytest.raises(LabError, match="too long.*Shorten it"):
        ask(faulty("narrow"), "m", "hello")


def test_a_setting_that_the_server_does_not_take_is_refused_and_defaults_are_not_sent(faulty):
    assert ask(faulty("strict"), "m", "hello", sampling=Sampling(0))[0]
    for changed in ({"top_k": 5}, {"min_p": 0.1}, {"repeat_penalty": 1.1}):
        with pytest.raises(LabError, match=f"does not take {next(iter(changed))}: set it to its default"):
            ask(faulty("strict"), "m", "hello", sampling=Sampling(0, **changed))


def test_stop_works_while_the_server_is_silent_and_closes_the_connection(faulty):
    started = time.monotonic()
    _, figures = ask(faulty("silent"), "m", "hello", cancelled=lambda: time.monotonic() > started + 0.3)
    assert figures.finish_reason == "cancelled"  # before the engine gives the server up, after 1 s
    seen = []
    for chunk in faulty("endless").stream("m", [Message(role="user", content="hi")], Sampling(0), lambda: bool(seen)):
        if chunk.text:
            seen.append(chunk.text)
    assert len(seen) == 1 and CLOSED.wait(3)


def test_closing_the_engine_cancels_an_answer_and_the_next_question_opens_it_again(faulty):
    engine = faulty("endless")
    chunks = engine.stream("m", [Message(role="user", content="hello")], Sampling(0), lambda: False)
    assert any(chunk.text for chunk in chunks)
    engine.close()
    assert list(chunks)[-1].figures.finish_reason == "cancelled"
    assert not engine.in_memory("m") and engine.models() == ["m"] and engine.in_memory("m")


def test_the_environment_is_checked(monkeypatch):
    monkeypatch.delenv("REMOTE_URL", raising=False)
    with pytest.raises(LabError, match="REMOTE_URL is not set"):
        Engine.from_environment()
    for url in ("somewhere", "ftp://host", "http://[", f"https://user:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        monkeypatch.setenv("REMOTE_URL", url)
        with pytest.raises(LabError, match="REMOTE_URL") as raised:
            Engine.from_environment()
        assert KEY not in str(raised.value)
    monkeypatch.setenv("REMOTE_URL", "https://host")
    monkeypatch.setenv("REMOTE_API_KEY", f"{KEY}\nsecond line")
    with pytest.raises(LabError, match="REMOTE_API_KEY holds"):
        Engine.from_environment()
