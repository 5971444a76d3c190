"""The page as its operator sees it: health, metrics, log lines, an orderly end, and errors without paths."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx2
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from huggingface_hub import HfApi

from inference import metrics
from inference.arena.votes import Votes
from inference.engines import Chunk, Figures
from inference.errors import UNKNOWN, LabError, hide_paths, visitor_message
from inference.settings import PROJECT, Settings
from inference.shutdown import RESTARTING, Shutdown
from local_hub import LocalHub
from ui.operations import Page, guarded

pytestmark = pytest.mark.xdist_group("hub")


def wait_until(condition: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for a condition. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def app(tmp_path, catalog_with_a_slow_model):
    """The app with a local Hub for its votes and JSON log lines."""
    with LocalHub(tmp_path / "hub") as hub, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        environment = os.environ | hub.environment(hub.token("me")) | {
            "PORT": str(port), "HUB_NAMESPACE": "", "VOTES": str(tmp_path / "votes.sqlite"), "VOTES_REPO": "me/votes",
            "CATALOG": str(catalog_with_a_slow_model), "LOG": "json", "QUESTIONS_AT_ONCE": "0",
            "QUESTIONS_PER_MINUTE": "0", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, "app.py"], cwd=PROJECT, env=environment, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        yield SimpleNamespace(process=process, url=url, hub=hub, folder=tmp_path)
        process.kill()
        process.wait()


def status(url: str) -> int:
    """The status of `/healthz`; 0 if nothing listens."""
    try:
        return httpx2.get(f"{url}/healthz", timeout=60).status_code
    except httpx2.RequestError:
        return 0


def test_sigterm_refuses_new_questions_lets_answers_end_pushes_votes_and_leaves_no_process(app):
    wait_until(lambda: status(app.url) == 200)
    client = Client(app.url, verbose=False)
    assert "Sweden" in client.predict("What does 🇸🇪 mean?", "nano-emoji", temperature=0, api_name="/ask")
    votes = Votes(app.folder / "votes.sqlite")
    votes.vote(votes.open_battle("?", ["x", "y"]).id, "a")
    long_answer = client.submit("Tell me about 🐙", "babble", max_tokens=2048, api_name="/ask")
    wait_until(lambda: bool(long_answer.outputs()))
    children = psutil.Process(app.process.pid).children(recursive=True)
    assert children
    app.process.send_signal(signal.SIGTERM)
    wait_until(lambda: status(app.url) == 503)
    with pytest.raises(AppError, match="The page is restarting: ask again in a minute"):
        client.predict("What does 🐙 mean?", "nano", api_name="/ask")
    assert long_answer.result(timeout=300)  # stopped after 10 s, and not lost
    assert app.process.wait(300) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    api = HfApi(app.hub.url, app.hub.token("me"))
    path = api.hf_hub_download("me/votes", "votes.jsonl", repo_type="dataset", cache_dir=app.folder / "cache")
    assert [json.loads(line)["outcome"] for line in Path(path).read_text().splitlines()] == ["a"]
    check_log((app.folder / "log").read_text(encoding="utf-8"))


def check_log(log: str) -> None:
    """One JSON line for each answer, and nothing of its text."""
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    answers = [(event["engine"], event["outcome"]) for event in events if event["event"] == "answer"]
    assert answers == [("llamacpp", "stop"), ("llamacpp", "cancelled")]
    assert [event["reason"] for event in events if event["event"] == "refusal"] == ["restarting"]
    assert "🐙" not in log and "octopus" not in log and "nano" not in log and "Traceback" not in log


def engine_process(app) -> psutil.Process:
    """The engine's process of the app."""
    (found,) = [
        child
        for child in psutil.Process(app.process.pid).children(recursive=True)
        if "inference.engines.isolation.engine_process" in child.cmdline()
    ]
    return found


def test_the_page_health_and_metrics_answer_while_the_engine_is_stuck(app):
    wait_until(lambda: status(app.url) == 200)
    client, other = Client(app.url, verbose=False), Client(app.url, verbose=False)
    for _ in range(5):  # again on a machine so slow that the heartbeat ends the process before all requests have ended
        stuck = other.submit("Tell me about 🐙", "babble", max_tokens=2048, api_name="/ask")
        wait_until(lambda job=stuck: bool(job.outputs()))
        engine_process(app).suspend()
        figures = httpx2.get(f"{app.url}/metrics", timeout=60).text
        assert status(app.url) == 200 == httpx2.get(app.url, timeout=60).status_code
        assert client.predict(api_name="/ranking")["votes"] == 0 and client.predict(api_name="/models")
        in_time = not stuck.done()
        with pytest.raises(AppError, match="it did not respond"):  # the heartbeat ends the stuck process
            stuck.result(timeout=300)
        if in_time:
            break
    assert in_time and "lab_answers_running 1.0" in figures
    assert float(re.search(r"^lab_memory_bytes (\S+)", figures, re.MULTILINE)[1]) > 50e6
    crashes = re.compile(r'lab_process_crashes_total{process="engine"} [1-5]\.0')
    assert crashes.search(httpx2.get(f"{app.url}/metrics", timeout=60).text)
    assert "octopus" in client.predict("What does 🐙 mean?", "nano", temperature=0, api_name="/ask")
    figures = httpx2.get(f"{app.url}/metrics", timeout=60).text
    assert re.search(r'lab_answers_total{engine="llamacpp",outcome="failed"} [1-5]\.0', figures)
    assert 'lab_answers_total{engine="llamacpp",outcome="stop"} 1.0' in figures
    assert "babble" not in figures and "127.0.0.1" not in figures


def test_an_answer_is_counted_by_how_it_ended():
    figures = Figures(3, 0, 5, 0.1, 9.0, "length")

    def answer(*steps: Chunk | Exception):
        for step in steps:
            if isinstance(step, Exception):
                raise step
            yield step

    def count(outcome: str) -> float:
        return metrics.REGISTRY.get_sample_value("lab_answers_total", {"engine": "test", "outcome": outcome}) or 0

    assert len(list(metrics.counted_answer("test", answer(Chunk("a"), Chunk(figures=figures))))) == 2
    with pytest.raises(LabError):
        list(metrics.counted_answer("test", answer(LabError("no"))))
    with pytest.raises(LabError):
        list(metrics.counted_answer("test", answer(Chunk("a"), LabError("no"))))
    with pytest.raises(ZeroDivisionError):
        list(metrics.counted_answer("test", answer(ZeroDivisionError())))
    left = metrics.counted_answer("test", answer(Chunk("a"), Chunk(figures=figures)))
    next(left)
    left.close()
    assert [count(each) for each in ("length", "refused", "failed", "error", "abandoned")] == [1] * 5
    assert metrics.REGISTRY.get_sample_value("lab_tokens_total", {"engine": "test", "kind": "answer"}) == 5
    assert metrics.REGISTRY.get_sample_value("lab_answers_running") == 0


def test_work_is_refused_after_the_end_has_begun_and_running_work_is_waited_for():
    shutdown = Shutdown()
    with shutdown.work():
        shutdown.begin()
        with pytest.raises(LabError, match=RESTARTING), shutdown.work():
            pass
        assert not shutdown.wait(0.01)
    assert shutdown.wait(0.01)


def test_visitors_see_no_path_of_the_server():
    home, temporary = Path.home(), tempfile.gettempdir()
    text = f"“{PROJECT}/adapters/nano/model.gguf” and {home}/.cache/x/y.bin: read {temporary}/z, or https://a.b/c/d."
    assert hide_paths(text) == "“model.gguf” and y.bin: read z, or https://a.b/c/d."
    assert hide_paths("A file in adapters/nano/ is 3/4 read.") == "A file in adapters/nano/ is 3/4 read."
    assert visitor_message(ValueError(f"{PROJECT}/secret")) == UNKNOWN


def test_an_unexpected_error_is_one_sentence_for_the_visitor_and_a_log_line_without_texts(caplog):
    def handler(question: str):
        yield "begun"
        raise KeyError(question)

    with caplog.at_level(logging.INFO, "lab"), pytest.raises(gr.Error) as raised:
        list(guarded(handler)("a visitor's text"))
    assert (raised.value.message, raised.value.print_exception) == (UNKNOWN, False)
    line = metrics.EventFormatter(as_json=True).format(caplog.records[-1])
    event = json.loads(line)
    assert (event["event"], event["error"]) == ("unexpected error", "KeyError")
    assert re.fullmatch(r"test_operations\.py:\d+ handler", event["stack"][-1])
    assert "visitor" not in line and "/" not in line

    def refuse() -> None:
        raise LabError(f"There is no file {PROJECT}/x.gguf.")

    with pytest.raises(gr.Error, match="There is no file x.gguf"):
        guarded(refuse)()


def test_a_call_of_the_api_leaves_no_session_behind():
    """Gradio would keep a copy of the page's configuration for each call."""
    with Page() as page:

        def shout(text: str) -> str:
            return text.upper()

        def count(limit: int) -> Iterator[int]:
            if limit > 2:
                raise gr.Error("too far", print_exception=False)
            yield from range(limit)

        gr.api(shout, api_name="shout")
        gr.api(count, api_name="count")
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        http = httpx2.Client(base_url=f"{page.local_url}gradio_api", timeout=300)
        for endpoint, value, ending in (("shout", "a", "A"), ("count", 2, "1"), ("count", 3, "too far")):
            event = http.post(f"/call/{endpoint}", json={"data": [value]}).json()["event_id"]
            assert ending in http.get(f"/call/{endpoint}/{event}").text
        assert not page.state_holder.session_data and not page.state_holder.time_last_used
    finally:
        page.close(verbose=False)


def test_health_is_answered_from_the_first_moment(app):
    """A probe sees no answer or a good one, never the 404 of a page whose routes are added later."""
    seen: set[int] = set()
    wait_until(lambda: seen.add(status(app.url)) or 200 in seen)
    assert seen <= {0, 200}


def test_the_limits_of_the_page_are_settings(monkeypatch):
    settings = Settings.from_environment()
    assert (settings.queue, settings.upload_bytes, settings.log_json) == (64, 25_000_000, False)
    monkeypatch.setenv("SPACE_ID", "me/lab")
    monkeypatch.setenv("QUEUE", "5")
    monkeypatch.setenv("UPLOAD_MB", "2")
    settings = Settings.from_environment()
    assert (settings.queue, settings.upload_bytes, settings.log_json) == (5, 2_000_000, True)
    monkeypatch.setenv("QUEUE", "0")
    with pytest.raises(LabError, match="QUEUE is not a number from 1"):
        Settings.from_environment()


@pytest.mark.parametrize(("option", "code", "words"), [("--help", 0, "docs/settings.md"), ("--share", 2, "no options")])
def test_the_app_takes_no_options_and_says_where_its_settings_are(option, code, words):
    command = [sys.executable, "app.py", option]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == code and words in (done.stderr if code else done.stdout)
