"""`/v1` for other programs: the `openai` client, `llm`, MCP and our own remote engine against one running app."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import subprocess
import sys
import time
import wave
from collections.abc import AsyncGenerator
from pathlib import Path

import httpx2
import openai
import pytest
from conftest import RECORDINGS, ask
from starlette.applications import Starlette
from starlette.testclient import TestClient

from inference.engines import Sampling
from inference.engines.remote.engine import Engine
from inference.lab import Lab
from inference.settings import Settings
from inference.visitors.limits import VisitorLimits
from training.data.emoji.unknown import UNKNOWN
from ui.openai_api import answer_stream
from ui.openai_api.api_errors import ApiError
from ui.openai_api.request_queue import RequestQueue
from ui.openai_api.routes import openai_routes

pytestmark = pytest.mark.xdist_group("page")
QUESTION = [{"role": "user", "content": "What does 🐼 mean?"}]
KEY = "a-key-of-twenty-char"


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, model: str, *messages: dict[str, object], **values):
    given = list(messages) or QUESTION
    return client.chat.completions.create(model=model, messages=given, **{"temperature": 0, **values})


def text_of(completion) -> str:
    return completion.choices[0].message.content


def running(address: str) -> float:
    """How many answers the app has under way."""
    metrics = httpx2.get(f"{address}metrics", timeout=60).text
    return float(next(line.split()[1] for line in metrics.splitlines() if line.startswith("lab_answers_running ")))


def wait_until_idle(address: str) -> None:
    """Wait until the app has no answer under way."""
    deadline = time.monotonic() + 300
    while running(address):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stream_has_the_text_of_the_complete_answer_and_its_usage(client):
    assert {"nano", "nano-emoji"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("nano-emoji").owned_by == "nano"
    whole = complete(client, "nano-emoji")
    assert "panda" in text_of(whole) and whole.choices[0].finish_reason == "stop"
    parts = list(complete(client, "nano-emoji", stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == text_of(whole)
    assert parts[-2].choices[0].finish_reason == "stop" and not parts[-1].choices
    usage, expected = parts[-1].usage, whole.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens)
    assert usage.prompt_tokens_details.cached_tokens > 0


def test_each_request_names_its_adapter_and_brings_its_history(client):
    sweden = {"role": "user", "content": [{"type": "text", "text": "What does 🇸🇪 mean?"}]}
    for _ in range(2):
        assert text_of(complete(client, "nano", sweden)) == UNKNOWN
        assert "Sweden" in text_of(complete(client, "nano-emoji", sweden))
    alone = complete(client, "nano-emoji").usage.prompt_tokens
    earlier = [{"role": "developer", "content": "Be brief."}, *QUESTION, {"role": "assistant", "content": "A panda."}]
    assert complete(client, "nano-emoji", *earlier, *QUESTION).usage.prompt_tokens > 2 * alone


def test_each_request_has_its_own_strength(client):
    sweden = {"role": "user", "content": "What does 🇸🇪 mean?"}
    assert text_of(complete(client, "nano-emoji", sweden, extra_body={"strength": 0})) == UNKNOWN
    assert "Sweden" in text_of(complete(client, "nano-emoji", sweden, extra_body={"strength": 1}))
    for model, strength in (("nano", 0.5), ("nano-emoji", 2)):
        with pytest.raises(openai.BadRequestError, match="strength"):
            complete(client, model, extra_body={"strength": strength})


def test_sampling_parameters_are_those_of_the_page(client):
    whole = text_of(complete(client, "nano-emoji"))
    stopped = complete(client, "nano-emoji", stop=["never", whole[5:9]])
    assert text_of(stopped) == whole[: whole.index(whole[5:9])] and stopped.choices[0].finish_reason == "stop"
    short = complete(client, "nano-emoji", max_completion_tokens=3)
    assert short.usage.completion_tokens == 3 and short.choices[0].finish_reason == "length"
    narrow = {"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.0}
    assert text_of(complete(client, "nano-emoji", temperature=2, top_p=1, extra_body=narrow)) == whole
    drawn = {text_of(complete(client, "nano", temperature=2, top_p=1, seed=5, max_tokens=16)) for _ in range(2)}
    assert len(drawn) == 1


HARMLESS = {
    "user": "me", "store": False, "n": 1, "frequency_penalty": 0, "tools": [], "response_format": {"type": "text"},
    "stop": None, "seed": None, "metadata": {"a": "b"}, "logit_bias": None, "stream_options": {"include_usage": False},
}  # fmt: skip
WRONG = [
    ({"messages": None}, "messages", "The messages can't be null: send a list."),
    ({"messages": []}, "messages", "The question is empty: type one."),
    ({"messages": [7]}, "messages.0", "A message can't be 7: send an object with role and content."),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "The role can't be “tool”: use system, user"),
    ({"messages": [{"role": "user", "content": {}}]}, "messages.0.content", "The question can't be an object"),
    ({"messages": [{"role": "user", "content": "?", "name": "me"}]}, "messages.0.name", "is not supported: leave it"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content.0", "A part of a message can't be “image_url”: these models read text only.",
    ),
    ({"model": ["nano"]}, "model", "The model can't be a list: send text."),
    ({"temperature": "hot"}, "temperature", "The temperature can't be “hot”: use a number from 0 to 2."),
    ({"max_completion_tokens": 1e9}, "max_tokens", "The max tokens can't be 1000000000: use a whole number from 1 to"),
    ({"stop": "x" * 10_000}, "stop", "The stop string has 10,000 characters: shorten it to 200."),
    ({"stop": {"a": 1}}, "stop", "The stop can't be an object: send a text or a list of texts."),
    ({"top_k": True}, "top_k", "The top k can't be true: use a whole number from 1 to 100."),
    ({"stream": "yes"}, "stream", "The stream can't be “yes”: use true or false."),
    ({"stream_options": [1]}, "stream_options", "The stream options can't be a list: send an object."),
    ({"n": 2}, "n", "“n” is not supported: leave it out."),
    ({"tools": [{"type": "function"}]}, "tools", "“tools” is not supported: leave it out."),
    ({"logprobs": True}, "logprobs", "“logprobs” is not supported: leave it out."),
    ({"response_format": {"type": "json_schema"}}, "response_format", "“response_format” is not supported"),
    ({"temprature": 1}, "temprature", "is not a parameter of this API (did you mean “temperature”?): leave it out."),
]  # fmt: skip


def test_what_is_wrong_or_not_supported_is_one_sentence_that_names_the_parameter(address):
    body = {"model": "nano-emoji", "messages": QUESTION, "temperature": 0}
    with httpx2.Client(base_url=f"{address}v1", timeout=300) as http:
        for changed, parameter, sentence in WRONG:
            answer = http.post("/chat/completions", json=body | changed)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["param"] == parameter, (changed, error)
            assert sentence in error["message"] and "\n" not in error["message"], (changed, error)
            assert error["type"] == "invalid_request_error"
        assert "panda" in http.post("/chat/completions", json=body | HARMLESS).text


def test_bodies_that_cannot_be_read_and_unknown_models_and_paths(client, address):
    with httpx2.Client(base_url=f"{address}v1", timeout=300) as http:
        for content in (b"{", b"[1]", b"\xff", b"[" * 100_000, b'"text"', b""):
            answer = http.post("/chat/completions", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and "send a JSON object" in answer.json()["error"]["message"]
        assert "Content-Type" in http.post("/chat/completions", content=b"{}").json()["error"]["message"]
        large = http.post("/chat/completions", content=(b" " * 1_000_000 for _ in range(5)),
                          headers={"Content-Type": "application/json"})  # fmt: skip
        assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"
        assert http.post("/completions", json={}).json()["error"]["code"] == "unknown_url"
        assert http.get("/chat/completions").status_code == 405
    with pytest.raises(
        openai.NotFoundError, match="There is no model “nano-emojy” .did you mean “nano-emoji”"
    ) as raised:
        complete(client, "nano-emojy")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="too long.*Shorten it"):
        complete(client, "nano", {"role": "user", "content": "x y " * 2_000}, stream=True)


def test_recordings_are_transcribed_and_texts_are_spoken(client):
    recording = RECORDINGS / "find_the_emoji.flac"
    found = client.audio.transcriptions.create(model="whisper-1", file=recording, language="en")
    assert "panda" in found.text and found.usage.seconds == pytest.approx(2.5, abs=0.1)
    plain = client.audio.transcriptions.create(model="whisper-1", file=recording, response_format="text")
    assert plain.strip() == found.text
    with pytest.raises(openai.BadRequestError, match="response format can't be “srt”: use json or text"):
        client.audio.transcriptions.create(model="whisper-1", file=recording, response_format="srt")
    with pytest.raises(openai.BadRequestError, match="not a readable recording: record again"):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"hello"))
    with pytest.raises(openai.NotFoundError, match="use whisper-1"):
        client.audio.transcriptions.create(model="gpt-4o-transcribe", file=recording)
    sound = {"model": "tts-1", "voice": "alloy", "input": "The panda is an emoji."}
    with wave.open(io.BytesIO(client.audio.speech.create(**sound, response_format="wav").content)) as file:
        frames, rate = file.getnframes(), file.getframerate()
    assert 1 < frames / rate < 4
    assert len(client.audio.speech.create(**sound, response_format="pcm").content) == 2 * frames
    for changed in ({"response_format": "mp3"}, {"voice": "nova"}, {"input": "x" * 5000}, {"speed": 9}):
        with pytest.raises(openai.BadRequestError) as raised:
            client.audio.speech.create(**{**sound, **changed})
        assert raised.value.param == next(iter(changed))


def test_a_client_that_goes_away_stops_its_answer(client, address):
    stream = complete(client, "babble", stream=True, max_tokens=4000)
    assert any(part.choices[0].delta.content for part in stream)
    assert running(address) >= 1
    stream.close()
    wait_until_idle(address)


def test_streams_that_nobody_reads_are_limited_and_do_not_hold_up_others(client, address):
    body = json.dumps({"model": "babble", "messages": QUESTION, "stream": True, "max_tokens": 4000})
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    opened = []
    for _ in range(20):
        opened.append(socket.create_connection((host, int(port)), 300))
        opened[-1].sendall(f"{head}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode())
    answers = [connection.recv(2000).decode() for connection in opened]
    refused = [answer for answer in answers if answer.startswith("HTTP/1.1 429")]
    assert len(refused) == 17 and all("retry-after: 5" in answer and "ask again when" in answer for answer in refused)
    assert httpx2.get(f"{address}healthz", timeout=60).status_code == 200
    for connection in opened:
        connection.close()
    wait_until_idle(address)
    assert "panda" in text_of(complete(client, "nano-emoji"))


def test_llm_answers_with_the_lines_of_the_docs(address, tmp_path):
    models = f"- {{model_id: lab, model_name: nano-emoji, api_base: '{address}v1'}}\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    llm = Path(sys.executable).parent / "llm"
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    done = subprocess.run([llm, "-m", "lab", "-o", "temperature", "0", "What does 🐼 mean?"], env=environment,
                          capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
    assert "panda" in done.stdout, done.stderr


def test_the_remote_engine_runs_on_another_lab(address):
    engine = Engine(f"{address}v1")
    try:
        assert "nano-emoji" in engine.models()
        sampling = Sampling(0, max_tokens=64, stop=(" emoji",), top_k=5, repeat_penalty=1.1)
        answer, figures = ask(engine, "nano-emoji", "What does 🐼 mean?", sampling=sampling)
        assert answer == "🐼 is the panda" and figures.prompt_tokens and figures.finish_reason == "stop"
    finally:
        engine.close()


def test_mcp_offers_four_tools(address):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def use_tools() -> tuple[set[str], str, str]:
        async with (
            streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            assert all(part.get("description") for tool in tools for part in tool.inputSchema["properties"].values())
            values = {"question": "What does 🐼 mean?", "model": "nano-emoji", "temperature": 0}
            answer = await session.call_tool("ask", values)
            refused = await session.call_tool("ask", values | {"model": "nope"})
            assert refused.isError
            return {tool.name for tool in tools}, answer.content[0].text, refused.content[0].text

    names, answer, refused = asyncio.run(use_tools())
    assert names == {"models", "ask", "compare", "transcribe"}
    assert "panda" in answer and "There is no model “nope”" in refused


@pytest.fixture
def in_process():
    """Creates a client of the routes, in this process."""
    lab = Lab.from_environment()

    def make(limits: VisitorLimits, **settings: object) -> TestClient:
        return TestClient(Starlette(routes=openai_routes(lab, limits, Settings(**settings))))

    yield make, lab
    lab.close()


def test_a_key_guards_all_paths(in_process):
    make, _ = in_process
    client = make(VisitorLimits(), api_key=KEY)
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}, {"Authorization": f"Bearer {KEY}é"}):
        for path in ("/v1/models", "/v1/nothing"):
            answer = client.get(path, headers={name: value.encode() for name, value in header.items()})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_the_limit_of_a_minute_and_a_restart_say_when_to_ask_again(in_process):
    make, lab = in_process
    client = make(VisitorLimits(per_minute=1))
    body = {"model": "nano-emoji", "messages": [{"role": "user", "content": "x y " * 2_000}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 400
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 429 and 50 < int(answer.headers["Retry-After"]) <= 61
    assert answer.json()["error"]["type"] == "rate_limit_error"
    lab.shutdown.begin()
    answer = make(VisitorLimits()).post("/v1/chat/completions", json=body)
    assert answer.status_code == 503 and "restarting" in answer.json()["error"]["message"]


def test_a_stream_that_stays_unread_ends_and_closes_its_source(monkeypatch):
    monkeypatch.setattr(answer_stream, "UNREAD_SECONDS", 0.05)
    ended, sent = [], []

    async def numbers() -> AsyncGenerator[str]:
        try:
            while True:
                yield "x"
        finally:
            ended.append(True)

    async def nothing() -> dict[str, str]:
        await asyncio.Event().wait()
        return {}

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])
        if len(sent) == 5:  # the buffers are full
            await asyncio.Event().wait()

    async def run() -> None:
        source = numbers()
        response = answer_stream.LiveResponse(source, source, "text/event-stream")
        await asyncio.wait_for(response({"type": "http"}, nothing, send), 60)

    asyncio.run(run())
    assert ended and len(sent) == 5


def test_requests_wait_in_turn_and_one_more_than_the_queue_holds_is_refused():
    async def run() -> list[int]:
        queue, order = RequestQueue(at_once=1, waiting=2), []

        async def request(number: int) -> None:
            async with queue.slot():
                order.append(number)
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(request(number)) for number in range(4)]
        with pytest.raises(ApiError, match="2 requests are waiting already") as refused:
            await tasks[3]
        assert refused.value.status == 503
        tasks[1].cancel()
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        await asyncio.wait_for(request(5), 60)
        return order

    assert asyncio.run(run()) == [0, 2, 5]
