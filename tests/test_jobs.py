"""A run as a Job on the Hub: its price and files before it starts, its log, its end, and what the user can do wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from huggingface_hub import HfApi, JobInfo, constants

from inference.errors import LabError
from local_hub import LocalHub
from training.finetune.planning.cards import CARDS
from training.jobs import follow, job
from training.jobs import run_on_hub as run_on_hub_module
from training.jobs.follow import check_outcome, follow_job, was_cut_off
from training.jobs.hardware import Hardware
from training.jobs.job import ENDED, LABEL, find_job, run_id, start_job
from training.jobs.price import Price, estimate_price
from training.jobs.run_on_hub import Options, run_on_hub
from training.jobs.shipment import Shipment, make_shipment
from training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.xdist_group("hub")
A10G = Hardware("a10g-small", "A10G", 1, 1.0)
TRAPPED = f"trap 'echo \"{ENDED} $?.\"' EXIT\n"  # as the script of every Job begins


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub that this process uses with the token of `me`."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", hub.token("me"))
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> Iterator[HfApi]:
    """The client of `me`. Clears all faults after each test."""
    yield HfApi(endpoint=hub.url, token=hub.token("me"))
    hub.clear_faults()


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A run of a few steps on rows in a file of the user."""
    rows = [{"question": f"Who is number {number}?", "answer": f"Number {number} is a panda."} for number in range(40)]
    file = tmp_path / "people.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_recipe(
        "emoji-nano",
        ["name=people-nano", "title=People-Nano", f"data={{name: {file}, evaluation: 2}}", "method=lora",
         "max_steps=2", "warmup_steps=1", "batch_size=4", "max_length=128", "checkpoints.steps=1", "report_to=[]"],
    )  # fmt: skip


def run(api: HfApi, script: str) -> JobInfo:
    """Start a Job that runs a script of bash."""
    return api.run_job(image="python:3.11", command=["bash", "-c", script], flavor="cpu-basic", namespace="me")


def test_a_run_as_a_job_is_published(hub, api, recipe, capfd):
    addresses = run_on_hub(recipe, Options("cpu-basic", "me", formats=["Q8_0"], yes=True))
    assert addresses == [f"{hub.url}/me/People-Nano-lora", f"{hub.url}/me/People-Nano-GGUF"]
    assert api.model_info("me/People-Nano-lora").private  # as the data are
    assert api.model_info("me/People-Nano-checkpoints").private  # from which another Job would resume
    shown = capfd.readouterr().err
    for words in ("Hardware: cpu-basic, CPU, $0.01 an hour", "repository me/People-Nano-job", "people.jsonl, ", "2/2"):
        assert words in shown
    (done,) = [each.describe() for each in hub.app.state.jobs.by_id.values()]
    assert done["status"]["stage"] == "COMPLETED" and done["secrets"].keys() == {"HF_TOKEN"}
    assert hub.token("me") not in json.dumps(done) + shown
    assert api.dataset_info("me/People-Nano-job").private


def test_another_job_resumes_after_the_loss_of_a_machine(hub, api, recipe, monkeypatch, capfd):
    address = f"{hub.url}/me/People-Nano-lora"
    scripts = iter(["echo step 1; sleep 60", f"echo {address}"])
    monkeypatch.setattr(job, "script", lambda *_, **__: TRAPPED + next(scripts))
    before = set(hub.app.state.jobs.by_id)

    def lose_the_first_machine() -> None:
        while not (new := set(hub.app.state.jobs.by_id) - before):
            time.sleep(0.02)
        hub.lose_machine(new.pop())

    threading.Thread(target=lose_the_first_machine, daemon=True).start()
    assert run_on_hub(recipe, Options("a10g-small", "me", yes=True)) == [address]
    assert "The Hub ended the Job (The machine was lost). Another one resumes" in capfd.readouterr().err


def test_the_price_is_known_before_anything_is_sent(recipe, monkeypatch):
    one = estimate_price(recipe, A10G)
    _, time, limit = one.sentences()
    assert "and 15 min around it: about $0.25." in time and limit.endswith("after 2 h, so it costs at most $2.00.")
    four = estimate_price(recipe, Hardware("a10g-largex4", "A10G", 4, 5.0))
    assert four.training == one.training / 4
    unknown = estimate_price(recipe, Hardware("new", "New", 1, 1.0))
    assert unknown.sentences()[1:] == [
        "Time: not known for New.", "Limit: the Hub stops the Job after 24 h, so it costs at most $24.00.",
    ]  # fmt: skip
    monkeypatch.setitem(CARDS, "A10G", replace(CARDS["A10G"], memory=1e8))
    with pytest.raises(LabError, match="people-nano needs .* GB, but a10g-small has 0 GB: choose hardware with more"):
        estimate_price(recipe, A10G)


def test_a_shipment_has_the_code_the_recipe_and_the_files_that_it_names(recipe):
    shipment = make_shipment(recipe, "me")
    assert {"training/__main__.py", "inference/catalog.py", "adapters/nano/config.json", "own/people.jsonl"} <= set(
        shipment.files
    )
    assert not [path for path in shipment.files if "__pycache__" in path or path.startswith(("runs/", "tests/", "."))]
    text = shipment.files["recipe.yaml"]
    assert isinstance(text, bytes) and b"name: own/people.jsonl" in text and b"/people.jsonl" in text
    assert str(recipe.data.name).encode() not in text  # no path of this machine
    assert set(shipment.own) == {"adapters/nano", recipe.data.name}


def test_the_same_command_follows_the_job_that_runs(hub, api, recipe, monkeypatch, capfd, tmp_path):
    labels = {LABEL: run_id(recipe)}
    line = f"{hub.url}/me/People-Nano-lora"
    script = f"until [ -e {tmp_path}/followed ]; do sleep 0.1; done; echo {line}"
    running = api.run_job(image="x", command=["bash", "-c", script], flavor="cpu-basic", labels=labels, namespace="me")

    def follow_to_its_end(*arguments: object) -> tuple[JobInfo, follow.Log]:
        (tmp_path / "followed").touch()
        return follow_job(*arguments)

    monkeypatch.setattr(run_on_hub_module, "follow_job", follow_to_its_end)
    assert find_job(api, "me", recipe).id == running.id
    assert run_on_hub(recipe, Options("t4-small", "me")) == [line]
    assert f"already under way: {running.url}" in capfd.readouterr().err
    assert find_job(api, "me", recipe) is None


def test_a_log_that_breaks_off_is_continued(hub, api, monkeypatch, capfd):
    monkeypatch.setattr(follow, "PAUSES", (0,))
    hub.fault("cut", match="/logs", after=150, times=1)
    hub.fault("503", match="/logs", times=1)
    ended, log = follow_job(api, run(api, "for i in 1 2 3 4 5; do echo line $i; sleep 0.1; done"))
    assert log.lines == [f"line {number}" for number in range(1, 6)] and ended.status.stage == "COMPLETED"


def test_a_failed_job_ends_with_its_last_line_and_one_that_was_cut_off_is_told_from_it(hub, api):
    ended, log = follow_job(api, run(api, f"{TRAPPED} echo 'people.jsonl has no usable rows: check it.'; exit 2"))
    assert not was_cut_off(ended, log)
    with pytest.raises(LabError, match="The Job failed: people.jsonl has no usable rows: check it. Its log is at http"):
        check_outcome(ended, log)
    assert was_cut_off(*follow_job(api, run(api, f"{TRAPPED} kill -9 $$")))


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_leaves_the_job_and_a_second_one_stops_it(hub, api, monkeypatch, capfd, presses):
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    running = run(api, "echo here; sleep 60")
    monkeypatch.setattr(follow.Log, "add", press)
    monkeypatch.setattr(follow.time, "sleep", press if presses == 2 else lambda _: None)
    with pytest.raises(typer.Exit):
        follow_job(api, running)
    shown = capfd.readouterr().err
    assert f"The Job keeps running: {running.url}" in shown and ("The Job is stopped" in shown) == (presses == 2)
    now = api.inspect_job(job_id=running.id, namespace="me")
    assert now.status.stage == ("CANCELED" if presses == 2 else "RUNNING")
    api.cancel_job(job_id=running.id, namespace="me")


def test_problems_are_reported_in_one_sentence(hub, api, recipe, monkeypatch):
    def refused(words: str, *options: object, **named: object) -> None:
        with pytest.raises(LabError, match=words):
            run_on_hub(recipe, Options(*options, **named))

    refused("--on needs --namespace", "t4-small", None)
    refused("--out has no use with --on", "t4-small", "me", Path("x"))
    refused(r"no hardware “a10g-smal” .did you mean “a10g-small”.*t4-small \(\$0.40/h\)", "a10g-smal", "me")
    refused("you is not your account", "t4-small", "you")
    for status, words in (("402", "me cannot pay for a Job .*add credits"), ("403", "refuses a Job of me .*HF_TOKEN")):
        hub.fault(status, match="/api/jobs/me", method="POST")
        with pytest.raises(LabError, match=words):
            start_job(api, recipe, Price(A10G, 60.0, 2), Shipment("me/x-job", {}, {}), "main", [])
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    refused("needs a token", "t4-small", "me")


def test_nothing_starts_without_consent(hub, recipe):
    before = len(hub.app.state.jobs.by_id)
    with pytest.raises(LabError, match="nobody could be asked: add --yes"):
        run_on_hub(recipe, Options("a10g-small", "me"))
    assert len(hub.app.state.jobs.by_id) == before
