"""One visitor cannot take the page from others: questions at once, questions a minute, and events that don't wait."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import httpx2
import pytest
from conftest import running_app
from gradio_client import Client

from inference.errors import LabError
from inference.lab import Lab
from inference.visitors.limits import Visitor, VisitorLimits, address_of
from ui.doctor.doctor_box import DoctorBox

pytestmark = pytest.mark.xdist_group("page")
LONG = {"temperature": 1, "max_tokens": 2048}


def test_a_visitor_has_a_number_of_questions_at_once():
    limits = VisitorLimits(at_once=2, per_minute=0)
    first, second = Visitor("192.0.2.1", "visit 1"), Visitor("192.0.2.1", "visit 2")
    refused = pytest.raises(LabError, match="2 of your questions are still being answered: ask again when one has")
    with limits.admit(first), limits.admit(first), limits.admit(first, "recording"), limits.admit(second), refused:
        limits.admit(first).__enter__()
    with limits.admit(first), limits.admit(first):
        pass


def test_an_examination_of_a_model_file_counts():
    with gr.Blocks():
        box = DoctorBox(Lab.from_environment(), VisitorLimits(at_once=1, per_minute=1))
    request = gr.Request(client=SimpleNamespace(host="192.0.2.1"), headers={}, session_hash="visit")
    *_, first = box.examine(request, "nowhere", "", None)
    assert "There is no model" in first
    *_, second = box.examine(request, "nowhere", "", None)
    assert "More than 1 examinations in one minute came from your address" in second


def test_an_address_has_a_number_of_questions_a_minute():
    limits = VisitorLimits(at_once=0, per_minute=3)
    for i in range(3):
        with limits.admit(Visitor("192.0.2.1", f"visit {i}")):
            pass
    message = r"More than 3 questions in one minute came from your address: ask again in (5\d|60) seconds"
    with pytest.raises(LabError, match=message):
        limits.admit(Visitor("192.0.2.1", "another visit")).__enter__()
    with limits.admit(Visitor("192.0.2.2")), limits.admit(Visitor("192.0.2.1"), "recording"):
        pass


def test_no_limit_is_0():
    limits = VisitorLimits(at_once=0, per_minute=0)
    for _ in range(100):
        limits.admit(Visitor("192.0.2.1")).__enter__()


def test_limits_hold_when_threads_ask_at_the_same_time():
    limits, running, most = VisitorLimits(at_once=3, per_minute=0), [], []

    def ask(_: int) -> bool:
        try:
            with limits.admit(Visitor("192.0.2.1")):
                running.append(1)
                most.append(len(running))
                time.sleep(0.002)
                running.pop()
                return True
        except LabError:
            return False

    with ThreadPoolExecutor(30) as pool:
        admitted = list(pool.map(ask, range(300)))
    assert max(most) <= 3 and 0 < sum(admitted) < 300
    with limits.admit(Visitor("192.0.2.1")), limits.admit(Visitor("192.0.2.1")), limits.admit(Visitor("192.0.2.1")):
        pass


def test_the_header_of_a_proxy_is_read_on_a_space_alone(monkeypatch):
    headers = {"x-forwarded-for": "198.51.100.7, 10.0.0.1"}
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert address_of("192.0.2.1", headers) == "192.0.2.1"
    monkeypatch.setenv("SPACE_ID", "me/lab")
    assert address_of("192.0.2.1", headers) == "198.51.100.7"
    assert address_of("192.0.2.1", {}) == "192.0.2.1"


def test_addresses_of_one_ipv6_network_are_one_visitor():
    assert address_of("2001:db8:0:1::1", {}) == address_of("2001:db8:0:1:ffff::2", {}) != address_of("2001:db8::1", {})
    assert address_of("::ffff:192.0.2.1", {}) == "192.0.2.1"


@pytest.fixture(scope="module")
def limited(tmp_path_factory, catalog_with_a_slow_model) -> Iterator[str]:
    """The address of an app with low limits."""
    folder = tmp_path_factory.mktemp("limited")
    environment = {
        "CATALOG": str(catalog_with_a_slow_model), "VOTES": str(folder / "votes.sqlite"), "HUB_NAMESPACE": "",
        "HF_ENDPOINT": "http://127.0.0.1:9", "QUESTIONS_PER_MINUTE": "12", "ANSWERS_AT_ONCE": "2",
        "QUESTIONS_AT_ONCE": "3",
    }  # fmt: skip
    with running_app(folder / "log", **environment) as url:
        yield url


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, 300 s at most."""
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_list_and_the_ranking_work_while_40_questions_wait(limited):
    """Two long answers hold both places; the questions behind them wait, and nothing else does."""
    http = httpx2.Client(base_url=f"{limited}gradio_api", timeout=300)
    running = [Client(limited, verbose=False).submit("?", "babble", **LONG, api_name="/ask") for _ in range(2)]
    wait_until(lambda: all(job.outputs() for job in running))
    waiting = {"data": ["What does 🐼 mean?", "nano-emoji", "", 0, 64, None, 0.9]}
    for _ in range(40):
        http.post("/call/ask", json=waiting).raise_for_status()
    wait_until(lambda: "lab_queue_length 0.0" not in http.get(f"{limited}metrics").text)
    for endpoint in ("ranking", "models"):
        event = http.post(f"/call/{endpoint}", json={"data": []}).json()["event_id"]
        assert "event: complete" in http.get(f"/call/{endpoint}/{event}").text
    assert http.get(f"{limited}config").status_code == 200
    assert not any(job.done() for job in running)
    for job in running:
        job.cancel()


def test_a_program_that_asks_too_often_is_told_when_to_try_again(limited):
    client = Client(limited, verbose=False)
    sentences = []
    for _ in range(14):
        try:
            client.predict("What does 🐼 mean?", "nano-emoji", api_name="/ask")
        except Exception as error:
            sentences.append(str(error))
    assert sentences and "More than 12 questions in one minute came from your address: ask again in" in sentences[-1]
    assert client.predict(api_name="/models")


@pytest.fixture(scope="module")
def open_to_votes(tmp_path_factory) -> Iterator[str]:
    """The address of an app with the usual limits of votes, and none of questions."""
    folder = tmp_path_factory.mktemp("votes")
    environment = {"VOTES": str(folder / "votes.sqlite"), "HUB_NAMESPACE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    with running_app(folder / "log", QUESTIONS_PER_MINUTE="0", **environment) as url:
        yield url


def test_a_script_cannot_decide_the_ranking(open_to_votes):
    """A question whose answer tells who is who, and six battles in less than a minute: four votes count."""
    client, counted = Client(open_to_votes, verbose=False), []
    for i in range(6):
        battle = client.predict(f"What does 🇸🇪 mean, question {i}?", ["*", "*"], api_name="/battle")
        outcome = max(battle["answers"], key=lambda letter: "Sweden" in battle["answers"][letter])
        counted.append(client.predict(battle["battle"], outcome, api_name="/vote")["counted"])
    assert sum(counted) == 4
    ranking = client.predict(api_name="/ranking")
    assert ranking["votes"] == 4
    for models in (["nano-emoji", "nano"], ["nano-emoji", "*"]):
        battle = client.predict("What does 🐙 mean?", models, api_name="/battle")
        vote = client.predict(battle["battle"], "a", api_name="/vote")
        assert not vote["counted"] and "models were not drawn at random" in vote["note"]
    assert client.predict(api_name="/ranking") == ranking


def test_visitors_who_leave_free_their_places(address):
    """Four clients leave in the middle of an answer. The next question from their address is answered."""
    body = {"data": ["?", "babble", "", 1, 4096, None, 0.9]}

    def leave(_: int) -> None:
        with httpx2.Client(base_url=f"{address}gradio_api", timeout=300) as http:
            event = http.post("/call/ask", json=body).json()["event_id"]
            with http.stream("GET", f"/call/ask/{event}") as answer:
                for line in answer.iter_lines():
                    if "generating" in line or "error" in line:
                        return

    threads = [threading.Thread(target=leave, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = Client(address, verbose=False)
    deadline, answer = time.monotonic() + 300, ""
    while not answer and time.monotonic() < deadline:
        try:
            answer = client.predict("What does 🐼 mean?", "nano-emoji", api_name="/ask")
        except Exception as error:
            assert "still being answered" in json.dumps(str(error))
            time.sleep(0.5)
    assert "panda" in answer
