"""The remote engine: its key, a server that stops and starts again, and a server for each possible error."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import RECORDINGS, ask, command
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from nano_server import KEY, SERVED, NanoServer, free_port

from inference.catalog import Catalog
from inference.engines import Chunk, Figures, Message, Sampling
from inference.engines.remote.chat_completion import ChatCompletion
from inference.engines.remote.engine import Engine
from inference.errors import LabError, ServerUnavailable
from inference.lab import Lab
from inference.models.server_check import ServerCheck, known_answers
from inference.settings import Settings
from inference.speech import RemoteTranscriber, Transcript
from inference.visitors.limits import VisitorLimits
from ui.components.conversation import without_notes

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
    if fault == "no-models":
        return {"object": "list", "data": [{"id": 7}, {"id": "a\nb"}, {}, {"id": "x" * 300}]}
    base = {"id": "m", "object": "model", "created": 0, "owned_by": "x", "max_model_len": 400}
    adapter = {**base, "id": "adapter", "parent": "m", "max_model_len": None}
    return {"object": "list", "data": [base, adapter, {**base, "id": "whisper-1", "max_model_len": -1}]}


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
        case "404-later" if REQUESTS[fault] == 2:
            return refusal(404, "The model `m` does not exist.")
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
        case "zip":
            return JSONResponse({}, headers={"content-encoding": "gzip"})
        case "deep":
            return Response("[" * 200_000, media_type="application/json")
        case "moved":
            return refusal(503)
        case "long" if body["max_tokens"] > 200:
            return refusal(400, "max_tokens=600 cannot be greater than max_model_len=400.")
        case "no-continue" if "continue_final_message" in body:
            return refusal(400, "Unrecognized request argument supplied: continue_final_message")
        case "echo":
            return JSONResponse(body)
        case "first-breaks" if REQUESTS[fault] == 1:
            return StreamingResponse(iter(()), media_type="text/event-stream")
        case "tokens" | "half-tokens":
            ids = fake_ids(
                body["messages"], body.get("add_generation_prompt", True), body.get("continue_final_message")
            )
            return {"id": "1", "choices": [], **({"prompt_token_ids": ids} if fault == "tokens" else {})}
        case "silent":
            await asyncio.sleep(30)
    return StreamingResponse(parts(fault), media_type="text/event-stream")


def fake_ids(messages: list[Message], generate: bool, unclosed: bool | None) -> list[int]:
    """Token ids as a chat template gives them: 1 to 3 for a role, the characters, 4 for the end."""
    roles = {"system": 1, "user": 2, "assistant": 3}
    ids = [token for m in messages for token in (roles[m["role"]], *map(ord, m["content"]), 4)]
    return ids[:-1] if unclosed else [*ids, 3] if generate else ids


@faults.post("/{fault}/v1/completions")
async def complete_tokens(fault: str, request: Request):
    """The next token as vLLM gives it: the likelier, the longer the prompt; "b" is never the most likely one."""
    body = await request.json()
    (token,) = body["allowed_token_ids"]
    name, value = f"token_id:{token}", -1.0 / len(body["prompt"])
    top = {name: value, "token_id:9": -0.001 if token == ord("b") else -9.0}
    logprobs = {"tokens": [name], "token_logprobs": [value], "top_logprobs": [top], "text_offset": [0]}
    return {"id": "1", "choices": [{"index": 0, "text": "", "logprobs": logprobs, "finish_reason": "length"}]}


async def parts(fault: str):
    try:
        if fault == "not-json":
            yield "data: {hello\n\n"
            return
        if fault == "not-utf8":
            yield b"data: \xff\xfe\n\n"
            return
        if fault == "object":
            yield event({"a": 1})
            return
        for _ in range(3 if fault == "flood" else 0):
            yield b"x" * 500_000
        for text in ["Hello", " 🇸", "🇪"]:
            yield event(text)
        if fault == "break":
            raise ConnectionError
        if fault == "no-end":
            return
        if fault == "error":
            yield 'data: {"error": {"message": "out of memory"}}\n\n'
            return
        if fault == "garbage":
            yield "data: {hello\n\n"
            return
        for _ in range(10_000 if fault == "talks" else 0):
            yield event("")
            yield event(" more")
        while fault in ("stall", "endless"):
            await asyncio.sleep(0.1)
            yield ": ping\n\n" if fault == "stall" else event(" more")
        yield event("!", "stop")
        usage = {"prompt_tokens": 22, "completion_tokens": 9, "total_tokens": 31}
        if fault.startswith("lie"):
            usage |= {"lie-1": {"completion_tokens": 10**12}, "lie-2": {"prompt_tokens": "many"},
                      "lie-3": {"prompt_tokens": 401}, "lie-4": {"completion_tokens": -1}}[fault]  # fmt: skip
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

    def make(fault: str, silence: float = 0) -> Engine:
        silence = silence or (1.0 if fault in ("silent", "stall") else 60.0)
        engines.append(Engine(f"http://127.0.0.1:{port}/{fault}/v1", KEY, silence))
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
        ("html", "did not answer as OpenAI's API specifies: REMOTE_URL may lead to a web page"),
        ("zip", "did not answer as OpenAI's API specifies"),
        ("deep", "did not answer as OpenAI's API specifies"),
        ("flood", "did not answer as OpenAI's API specifies"),
        ("not-utf8", "did not answer as OpenAI's API specifies"),
        ("object", "did not answer as OpenAI's API specifies"),
        ("no-models", "serves no model “m”: choose one of none"),
        ("no-list", "did not answer as OpenAI's API specifies"),
        ("not-json", "did not answer as OpenAI's API specifies"),
        ("silent", "sent nothing for 1 s"),
    ],
)
def test_each_error_has_a_message_without_the_key(faulty, caplog, monkeypatch, fault, message):
    caplog.set_level("DEBUG")
    monkeypatch.setattr("inference.engines.remote.openai_client.MAX_BYTES", 1_000_000)
    engine = faulty(fault)
    with pytest.raises(LabError, match=message) as raised:
        ask(engine, "m", "hello")
    shown = "".join(traceback.format_exception(raised.value)) + caplog.text + repr(engine)
    assert KEY not in shown
    assert raised.value.__cause__ is None and raised.value.__context__ is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("break", "ended the stream"),
        ("no-end", "ended the stream"),
        ("error", "ended the stream"),
        ("garbage", "sent something else than OpenAI's API specifies"),
        ("stall", "sent nothing for 1 s"),
    ],
)
def test_the_text_before_an_interruption_is_kept(faulty, fault, message):
    chunks = []
    with pytest.raises(LabError, match=f"{message} in the middle of the answer: what came is kept, continue it"):
        for chunk in faulty(fault).stream("m", [Message(role="user", content="hello")], Sampling(0), lambda: False):
            chunks.append(chunk.text)
    assert "".join(chunks) == "Hello 🇸🇪"
    assert REQUESTS[fault] == 1


def test_a_server_that_never_ends_is_stopped(faulty):
    with pytest.raises(LabError, match="sent more than the most tokens that were requested, and was stopped"):
        ask(faulty("talks"), "m", "hello")


@pytest.mark.parametrize(("fault", "times"), [("503-twice", 3), ("429-once", 2), ("first-breaks", 2)])
def test_retries_before_the_first_token_and_shows_it(faulty, fault, times):
    question = [Message(role="user", content="hello")]
    chunks = list(faulty(fault).stream("m", question, Sampling(0), lambda: False))
    assert "".join(chunk.text for chunk in chunks) == "Hello 🇸🇪!"
    assert REQUESTS[fault] == times
    assert sum("trying again" in (chunk.waiting or "") for chunk in chunks) == times - 1


def test_a_replica_that_restarted_has_time_to_load_its_adapters(faulty):
    engine = faulty("404-later")
    answers = [ask(engine, "m", "hello")[0] for _ in range(2)]
    assert answers == ["Hello 🇸🇪!"] * 2 and REQUESTS["404-later"] == 3


def test_figures_come_from_the_server_if_it_counts_tokens(faulty):
    answer, figures = ask(faulty("ok"), "m", "hello")
    assert (figures.prompt_tokens, figures.cached_tokens, figures.completion_tokens) == (22, 7, 9)
    same, figures = ask(faulty("no-usage"), "m", "hello")
    assert answer == same == "Hello 🇸🇪!" and figures.completion_tokens == 4


@pytest.mark.parametrize("fault", ["lie-1", "lie-2", "lie-3", "lie-4"])
def test_token_counts_that_cannot_be_true_are_not_shown(faulty, fault):
    _, figures = ask(faulty(fault), "m", "hello")
    assert (figures.prompt_tokens, figures.cached_tokens, figures.completion_tokens) == (0, 0, 4)
    assert "token counts can't be true" in figures.note


def test_the_context_is_the_one_that_the_server_lists(faulty):
    engine = faulty("long")
    assert engine.models() == ["m", "adapter"]
    for model in engine.models():
        assert ask(engine, model, "hello", sampling=Sampling(0))[1].context_tokens == 400
    assert REQUESTS["long"] == 4  # 256 tokens are refused, 128 are not


def test_an_answer_is_continued(faulty):
    question, begun = Message(role="user", content="hello"), Message(role="assistant", content="Hell")
    sent = ChatCompletion("m", [question, begun], Sampling()).arguments()
    assert sent["extra_body"] == {"continue_final_message": True, "add_generation_prompt": False}
    assert "extra_body" not in ChatCompletion("m", [question], Sampling()).arguments()
    with pytest.raises(LabError, match="can't continue an answer: ask again"):
        list(faulty("no-continue").stream("m", [question, begun], Sampling(0), lambda: False))


@faults.post("/{fault}/v1/audio/transcriptions")
async def transcribe_recording(fault: str, request: Request):
    form = await request.form()
    recording = await form["file"].read()
    match fault:
        case "refused":
            return refusal(400, "not a sound")
        case "503":
            return refusal(503)
        case "quiet":
            return {"text": "  "}
        case "essay":
            return {"text": "word " * 10_000}
    words = f"{len(recording)} bytes, {form['model']}, {form.get('language')}\0"
    return {"text": words, "usage": {"type": "duration", "seconds": 2 if fault == "ok" else "lie"}}


def test_the_servers_whisper_transcribes_and_the_local_one_if_it_does_not_answer(faulty, tmp_path):
    def transcribe(fault: str, recording: Path | bytes) -> Transcript:
        transcriber = RemoteTranscriber("base", lambda: faulty(fault))
        try:
            *_, found = transcriber.transcribe(recording, "en-US")
        finally:
            transcriber.close()
        return found

    (tmp_path / "a.wav").write_bytes(b"sound")
    found = transcribe("ok", tmp_path / "a.wav")
    assert (found.text, found.duration, found.model) == ("5 bytes, whisper-1, en", 2, "whisper-1")
    assert transcribe("lie", b"sound").duration == 0
    for fault, message in {"refused": "can't read this recording: record again", "quiet": "No speech was recognised",
                           "essay": "did not answer as OpenAI's API specifies"}.items():  # fmt: skip
        with pytest.raises(LabError, match=message):
            transcribe(fault, b"sound")
    here = RECORDINGS / "find_the_emoji.flac"
    for fault in ("503", "no-list"):
        assert "panda" in transcribe(fault, here).text


def test_an_answer_is_scored_token_by_token(faulty):
    question = [Message(role="user", content="hi")]
    score = faulty("tokens").score("m", question, "ab")
    assert score.tokens == 3 and not score.greedy  # a, b, and the token that ends the answer
    assert score.log_likelihood == pytest.approx(-1 / 5 - 1 / 6 - 1 / 7)
    assert faulty("tokens").score("m", question, "aa").greedy
    for fault in ("half-tokens", "ok", "no-continue"):
        with pytest.raises(LabError, match=r"127.0.0.1:\d+ (can't score answers|did not answer as)"):
            faulty(fault).score("m", question, "ab")
    with pytest.raises(LabError, match="serves no model “n”"):
        faulty("tokens").score("n", question, "ab")


def test_the_message_about_a_lost_server_has_the_time_of_the_last_answer(faulty):
    engine = faulty("moved")
    engine._messages.answered_at = 0.0
    with pytest.raises(ServerUnavailable, match=r"status 503. .its last answer ended at 00:00 UTC.: ask again later"):
        ask(engine, "m", "hello")


def self_signed(folder: Path) -> list[Path]:
    """A certificate and its key, signed by nobody else."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    options = ["-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=other.example", "-days", "1"]
    subprocess.run(["openssl", "req", *options, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return [certificate, key]


def test_a_certificate_that_does_not_fit_and_a_server_without_tls(faulty, tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        accepted = []

        def refuse() -> None:
            with suppress(OSError):  # until the listener is shut down
                while True:
                    accepted.append(listener.accept()[0])
                    with suppress(OSError):
                        context.wrap_socket(accepted[-1], server_side=True)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(LabError, match="certificate of 127.0.0.1:.* is not accepted .self-signed certificate"):
            ask(Engine(f"https://127.0.0.1:{port}"), "m", "hello")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert len(accepted) == 1  # it does not try again
    plain = faulty("ok")._client._url.replace("http://", "https://")
    with pytest.raises(LabError, match="does not use TLS: check the port in REMOTE_URL, or begin it with http://"):
        ask(Engine(plain), "m", "hello")


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
    _, figures = ask(faulty("silent", 300), "m", "hello", cancelled=lambda: time.monotonic() > started + 0.3)
    assert figures.finish_reason == "cancelled"  # before the engine gives the server up
    seen = []
    for chunk in faulty("endless").stream("m", [Message(role="user", content="hi")], Sampling(0), lambda: bool(seen)):
        if chunk.text:
            seen.append(chunk.text)
    assert len(seen) == 1 and CLOSED.wait(60)


def test_closing_the_engine_cancels_an_answer_and_the_next_question_opens_it_again(faulty):
    engine = faulty("endless")
    chunks = engine.stream("m", [Message(role="user", content="hello")], Sampling(0), lambda: False)
    assert any(chunk.text for chunk in chunks)
    engine.close()
    assert list(chunks)[-1].figures.finish_reason == "cancelled"
    assert not engine.in_memory("m") and "m" in engine.models() and engine.in_memory("m")


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


@pytest.fixture
def page(faulty, monkeypatch):
    """Makes the chat tab of a page whose server has the given fault. Its model is called "m"."""
    import gradio as gr

    from ui.components.answer_settings import AnswerSettings
    from ui.tabs.chat import ChatTab
    from ui.voice.voice_settings import VoiceSettings

    def make(fault: str) -> ChatTab:
        monkeypatch.setattr(Engine, "from_environment", lambda: faulty(fault))
        lab = Lab(Catalog.read(Settings().catalog), "remote")
        assert lab.refresh() == ""
        with gr.Blocks():
            return ChatTab(lab, VisitorLimits(), AnswerSettings(), VoiceSettings())

    return make


def settings_of(model: str = "m") -> list:
    """The values of the chat tab's settings."""
    return [model, {}, False, "", 0, 0.9, 64, "", ""]


VISIT = SimpleNamespace(session_hash="visit", client=None, headers={})


def test_a_visitor_keeps_what_came_and_can_continue_it(page):
    tab = page("break")
    *_, (history, box, *_) = tab.ask(VISIT, "hello", [], *settings_of())
    question, answer = history
    assert answer["content"].startswith("Hello 🇸🇪\n\n") and "in the middle of the answer" in answer["content"]
    assert answer["options"][0] == {"value": "continue", "label": "Continue"}
    assert question["content"] == "hello" and box == {"__type__": "update"}
    tab = page("ok")
    chosen = SimpleNamespace(value="continue")
    *_, (continued, *_) = tab.run_action(chosen, VISIT, history, *settings_of())
    assert without_notes(continued[-1]["content"]).strip() == "Hello 🇸🇪Hello 🇸🇪!" and len(continued) == 2
    assert continued[-1]["options"][0]["label"] == "Read aloud"
    failing = page("no-continue")
    *_, (unchanged, _, notice, *_) = failing.run_action(chosen, VISIT, history, *settings_of())
    assert unchanged == history and "can't continue an answer" in notice


def test_a_question_without_a_first_token_goes_back_into_the_box(page):
    *_, (history, box, notice, *_) = page("404").ask(VISIT, "hello", [], *settings_of())
    assert (history, box) == ([], "hello") and "serves no model" in notice


class Server:
    """A server that answers with the same text, or raises an error."""

    host = "host"

    def __init__(self, answer: str | LabError) -> None:
        self.answer, self.asked = answer, 0

    def models(self) -> list[str]:
        """Its models."""
        if isinstance(self.answer, LabError):
            raise self.answer
        return [*SERVED, "other"]

    def stream(self, model: str, messages: list[Message], *_: object) -> Iterator[Chunk]:
        """The answer."""
        self.asked += 1
        if isinstance(self.answer, LabError):
            raise self.answer
        yield Chunk(text=self.answer)
        yield Chunk(figures=Figures(1, 0, 1, 0.1, None, "stop"))

    def close(self) -> None:
        """Nothing is open."""


def test_llamacpp_takes_over_until_the_server_is_back(monkeypatch):
    server = Server(ServerUnavailable("host can't be reached."))
    monkeypatch.setattr(Engine, "from_environment", lambda: server)
    lab = Lab(Catalog.read(Settings().catalog), "remote", fallback=True)
    question = [Message(role="user", content="What does 🐼 mean?")]
    for _ in range(2):
        chunks = list(lab.ask("nano-emoji", question, Sampling(0)))
        assert "panda" in "".join(chunk.text for chunk in chunks)
        assert "answered by llama.cpp on this machine" in chunks[-1].figures.note
    assert server.asked == 1  # it is left alone for some seconds
    with pytest.raises(LabError, match="can't be reached. llama.cpp can't take over: .* has no GGUF file on this disk"):
        list(lab.ask("llama-3.2-1b", question, Sampling(0)))
    server.answer = "from the server"
    monkeypatch.setattr("inference.models.fallback.RETRY_SECONDS", 0)
    list(lab.ask("nano-emoji", question, Sampling(0)))  # whoever answers: a thread asks the server for its models
    deadline = time.monotonic() + 300
    while lab.fallback._problem and time.monotonic() < deadline:
        time.sleep(0.01)
    chunks = list(lab.ask("nano-emoji", question, Sampling(0)))
    assert chunks[0].text == "from the server" and not chunks[-1].figures.note
    lab.close()


def test_a_server_with_another_base_under_a_known_name_is_named():
    catalog = Catalog.read(Settings().catalog)
    check = ServerCheck(catalog)
    check.check(Server("Hello"))
    assert "nano, nano-emoji, nano-emoji-1-epoch there gives other answers to known questions" in check.note

    class Right(Server):
        def stream(self, model: str, messages: list[Message], *_: object) -> Iterator[Chunk]:
            answers = dict(known_answers(catalog)[model])
            yield Chunk(text=answers[messages[0]["content"]][:30])

    check.check(Right(""))
    assert check.note == ""
    check.check(Server(ServerUnavailable("host can't be reached.")))
    assert check.note == ""
