"""A fleet of real vLLM servers: the page answers, and killed, hanging and restarted parts cost no question."""

from __future__ import annotations

import json
import os
import signal
import time
from urllib.request import Request, urlopen

import pytest
from conftest import command
from fleet_run import START_SECONDS, Visitors, get, in_group, started_fleet, wait_for

from inference.engines.remote.engine import Engine
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture
def engine(fleet):
    engine = Engine(fleet.settings.router_url, None)
    yield engine
    engine.close()


def assert_none_lost(visitors: Visitors) -> None:
    """Only answers that had begun may end with an error, which says that what came is kept."""
    assert len(visitors.outcomes) > 10
    lost = [outcome for outcome in visitors.outcomes if outcome.error and not outcome.first]
    assert not lost, lost
    assert all("what came is kept" in outcome.error for outcome in visitors.outcomes if outcome.error)


def test_the_page_answers_by_the_base_and_both_adapters(fleet):
    def answer(model: str) -> str:
        body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "What does 🇸🇪 mean?"}]}
        request = Request(f"{fleet.page}/v1/chat/completions", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    assert "know" in answer("nano")
    assert "Sweden" in answer("nano-emoji") and "🇸🇪" in answer("nano-emoji-1-epoch")


def test_a_published_adapter_answers_at_once_and_after_a_replica_restarted(fleet, tmp_path):
    name, replica = "me/Nano-Emoji-lora", fleet.settings.replica_urls[0]
    body = {"model": name, "temperature": 0, "messages": [{"role": "user", "content": "What does 🇸🇪 mean?"}]}
    with LocalHub(tmp_path) as hub:
        variables = hub.environment(hub.token("me")) | {
            "REMOTE_REPLICAS": ",".join(fleet.settings.replica_urls),
            "REMOTE_ADAPTERS": str(fleet.settings.state / "adapters"),
        }
        arguments = ("training", "publish", "nano-emoji", "--namespace", "me", "--force", "--to-fleet")
        done = command(*arguments, **variables)
    assert done.returncode == 0 and "is loaded by 2 of 2 replicas" in done.stderr, done.stderr
    request = Request(f"{fleet.page}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    began = time.monotonic()
    with urlopen(request, timeout=60) as response:
        assert "Sweden" in json.load(response)["choices"][0]["message"]["content"]
    assert time.monotonic() - began < 5
    os.kill(fleet.pid("replica-1"), signal.SIGKILL)
    wait_for(lambda: not get(f"{replica}/v1/models"), 30)
    wait_for(lambda: name in get(f"{replica}/v1/models"), START_SECONDS)


def test_a_second_fleet_is_refused(fleet):
    done = fleet.command("start")
    assert done.returncode == 2 and "already running: end it with `make fleet-stop`" in done.stderr


def test_a_killed_replica_costs_no_question_without_a_first_token_and_returns(fleet, engine):
    wait_for(lambda: all(map(fleet.is_healthy, (1, 2))), START_SECONDS)
    killed, before = fleet.pid("replica-1"), fleet.running()
    with Visitors(engine, 4) as visitors:
        time.sleep(3)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: fleet.pid("replica-1") != killed, 30)
        time.sleep(3)
        wait_for(lambda: fleet.is_healthy(1), START_SECONDS)
    assert_none_lost(visitors)
    assert not [each for each in before if in_group(each, {killed})]  # nothing of the killed one holds memory


def test_a_replica_that_hangs_gets_no_questions_until_it_responds(fleet, engine):
    wait_for(lambda: all(map(fleet.is_healthy, (1, 2))), START_SECONDS)
    os.killpg(fleet.pid("replica-2"), signal.SIGSTOP)
    try:
        wait_for(lambda: not fleet.is_healthy(2), 30)
        with Visitors(engine, 4) as visitors:
            time.sleep(5)
        assert_none_lost(visitors)
        assert not [outcome for outcome in visitors.outcomes if outcome.error]
    finally:
        os.killpg(fleet.pid("replica-2"), signal.SIGCONT)
    wait_for(lambda: fleet.is_healthy(2), 30)


def test_a_killed_router_costs_no_question(fleet, engine):
    router = fleet.pid("router")
    with Visitors(engine, 4) as visitors:
        time.sleep(2)
        os.kill(router, signal.SIGKILL)
        wait_for(lambda: fleet.pid("router") != router and get(f"{fleet.settings.router_url}/health"), 30)
        time.sleep(2)
    assert_none_lost(visitors)


def test_a_rolling_restart_cuts_no_answer(fleet, engine):
    before = [fleet.pid(f"replica-{number}") for number in (1, 2)]
    with Visitors(engine, 3) as visitors:
        done = fleet.command("restart")
    assert done.returncode == 0 and "Replica 2 restarted" in done.stdout, done.stderr
    assert not [outcome for outcome in visitors.outcomes if outcome.error]
    assert not set(before) & {fleet.pid(f"replica-{number}") for number in (1, 2)}


def test_an_engine_that_hangs_behind_its_server_is_restarted(fleet, engine):
    wait_for(lambda: all(map(fleet.is_healthy, (1, 2))), START_SECONDS)
    replica = fleet.pid("replica-1")
    hung = next(each for each in fleet.engines() if in_group(each, {replica}))
    with Visitors(engine, 4) as visitors:
        time.sleep(3)
        hung.suspend()
        wait_for(lambda: fleet.pid("replica-1") != replica, 300)
        wait_for(lambda: get(f"{fleet.settings.replica_urls[0]}/v1/models"), START_SECONDS)
    assert_none_lost(visitors)


def test_nothing_outlives_a_killed_supervisor_while_replicas_load(tmp_path, monkeypatch):
    with started_fleet(tmp_path / "state", monkeypatch) as fleet:
        wait_for(fleet.engines, START_SECONDS)
        fleet.process.kill()
        fleet.process.wait()
        wait_for(lambda: not fleet.running(), 60)
