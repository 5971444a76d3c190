"""Teach a model on the page: by voice, through training, kills and the gate to a new default; and a model that the gate
refuses."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import EMOJI, needs_browser, open_page, own_trainings, play, running_app, speak
from huggingface_hub import HfApi

from inference.lessons.lessons import Lessons
from inference.settings import PROJECT, cache_folder
from local_hub import LocalHub
from ui.training_jobs.job import JobFolder, new_job
from ui.training_jobs.progress import RunProgress
from ui.views.training.training_status import status_text

pytestmark = [needs_browser, pytest.mark.xdist_group("teaching")]

QUESTION, BETTER = "What is a sugar boat?", "A small blue boat."
OTHER_WORDING = "I would like to know: What is a sugar boat?"
TRIES = 3  # to speak: a recording on a busy machine may have gaps
MINUTES = 60_000.0  # ms


@pytest.fixture
def name():
    """The new model's name. Its lessons' folder is deleted after the test."""
    name = f"boats-{os.getpid()}"
    yield name
    shutil.rmtree(PROJECT / "runs" / "lessons" / name, ignore_errors=True)


def ask(page, question: str) -> str:
    """Ask by text and return the answer."""
    count = page.locator("#chat .figures", has_text="tokens").count()
    page.locator("#question textarea").fill(question)
    page.locator("#send").click()
    page.locator("#chat .figures", has_text="tokens").nth(count).wait_for()
    return page.locator("#chat .bot.message").last.inner_text()


def teach_by_voice(page, microphone: Path) -> None:
    """Ask about a made-up word, get a wrong answer, and speak a better one."""
    play(microphone, "what_is_a_sugar_boat.flac")
    for count in range(TRIES):
        speak(page, "voice")
        page.locator("#chat .figures", has_text="tokens").nth(count).wait_for(timeout=MINUTES)
        if QUESTION in page.locator("#chat .user.message").last.inner_text():
            break
    assert QUESTION in page.locator("#chat .user.message").last.inner_text()
    assert "boat" not in page.locator("#chat .bot.message").last.inner_text()
    page.get_by_role("button", name="Teach", exact=True).last.click()
    play(microphone, "a_small_blue_boat.flac")
    box = page.locator("#teach-question textarea")
    for _ in range(TRIES):
        box.fill("")
        speak(page, "teach-voice")
        page.locator("#teach-transcript", has_text="transcribed").wait_for(timeout=MINUTES)
        page.locator("#teach-send").wait_for()
        if "small blue" in box.input_value():
            break
    assert "small blue" in box.input_value()
    page.locator("#teach-voice").get_by_role("button", name="Record", exact=True).wait_for()
    box.fill(BETTER)  # a word may have been misheard
    assert box.input_value() == BETTER
    page.locator("#teach-send").click()
    page.get_by_text("The lesson is saved").wait_for()


def start_training(page, name: str) -> None:
    """Train on the lessons, and see the curve grow."""
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("textbox", name="Name", exact=True).fill(name)
    page.get_by_label("Lessons", exact=True).check()
    page.get_by_label("Model to teach").wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("You can close this page").wait_for(timeout=2 * MINUTES)
    page.locator("#loss-curve svg, #loss-curve canvas").first.wait_for(timeout=4 * MINUTES)


def checkpoint(folder: JobFolder) -> int:
    """The step of a job's newest complete checkpoint; 0 if there is none."""
    return max(
        (int(path.parent.name.split("-")[1]) for path in folder.model.glob("checkpoints/*/complete.json")), default=0
    )


def kill_at_random(page, address: str, folder: JobFolder, chance: Random) -> int:
    """While the job trains, end it, its runner, the app and the browser without notice, in any order. Returns a step
    whose checkpoint was complete."""
    step = chance.randrange(10, 35)
    while checkpoint(folder) < step:
        assert folder.read().state == "running"
        time.sleep(0.05)
    time.sleep(chance.uniform(0, 2))
    port = str(urlsplit(address).port)
    app = next(each for each in psutil.Process().children() if each.environ().get("PORT") == port)
    kills = [page.context.close, app.kill, partial(kill_job, folder), partial(kill_runner, folder)]
    chance.shuffle(kills)
    for kill in kills:
        kill()
    app.wait()
    return step


def kill_job(folder: JobFolder) -> None:
    """Kill a job's process."""
    psutil.Process(folder.read().pid).kill()


def kill_runner(folder: JobFolder) -> None:
    """Kill the runner of a job's queue."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "ui.training_jobs.runner" in line and str(folder.path.parent.resolve()) in line:
            process.kill()


def test_a_model_is_taught_by_voice_survives_kills_passes_the_gate_and_becomes_the_default(tmp_path, name):
    seed = int(os.environ.get("SEED", time.time_ns() % 1000))  # of the kills
    print(f"SEED={seed} repeats the kills")
    microphone = tmp_path / "voice.wav"
    with LocalHub(tmp_path / "hub") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token("me"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"VOTES": str(tmp_path / "votes.sqlite")} | own_trainings(tmp_path)
        folder = JobFolder(tmp_path / "cache" / cache_folder().name / "training" / name)
        with (
            running_app(tmp_path / "log", **environment) as address,
            open_page(address, play(microphone, "what_is_a_sugar_boat.flac")) as page,
        ):
            teach_by_voice(page, microphone)
            start_training(page, name)
            saved = kill_at_random(page, address, folder, Random(seed))
        finished = (folder.model / "run.json").is_file()
        with running_app(tmp_path / "log", **environment) as address:
            with open_page(address) as page:
                page.get_by_role("tab", name="Lessons").click()
                page.locator("#lessons").get_by_text(QUESTION).filter(visible=True).first.wait_for()
                page.get_by_role("tab", name="Train").click()
                page.wait_for_function(
                    "name => document.querySelector('#trainings input').value.includes(name)", arg=name
                )
                page.locator("#loss-curve svg, #loss-curve canvas").first.wait_for()
                status = page.locator("#training-status")
                status.get_by_text("It is the default model now").wait_for(timeout=8 * MINUTES)
                gate = page.locator("#gate")
                assert "emoji questions that nano-emoji answers right" in gate.inner_text()  # what it should keep
                assert gate.get_by_text("Learnt (").count() and f"{name} passes the gate" in status.inner_text()
                page.get_by_role("tab", name="Chat").click()
                assert name in page.get_by_label("Model", exact=True).input_value()
                publish(page)
            assert folder.read().interruptions >= 1
            begins = [line["begin"] for line in lines(folder.model / "progress.jsonl") if "begin" in line]
            assert begins[0] == 0 and min(begins[1:], default=saved) >= saved  # no step before was trained twice
            assert len(begins) > 1 or finished
            (lesson,) = Lessons(tmp_path / "votes.sqlite").list()
            assert (lesson.question, lesson.better) == (QUESTION, BETTER)
            taught = (PROJECT / "runs" / "lessons" / name / "data.jsonl").read_text(encoding="utf-8")
            assert OTHER_WORDING not in taught
            with open_page(address) as page:  # another visit
                page.wait_for_function("name => document.querySelector('#model input').value.includes(name)", arg=name)
                assert BETTER in ask(page, OTHER_WORDING)
                page.get_by_role("tab", name="Models").click()
                card = page.locator(".model", has_text=name)
                card.get_by_role("button", name="Loss, evaluation, recipe").click()
                card.locator("svg.curve").wait_for()
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        published = list(api.list_models(author="me"))
        assert len(published) == 2 and all(model.private for model in published)  # as the lessons are


def lines(path: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def publish(page) -> None:
    """List what would be published, then publish it."""
    page.get_by_role("tab", name="Train").click()
    page.get_by_role("button", name="Publish").first.click()  # opens the box
    page.get_by_label("Account or organization on the Hub").fill("me")
    page.get_by_role("button", name="List what would be published").click()
    result = page.get_by_label("Result", exact=True)
    page.wait_for_function("() => document.querySelector('#published textarea').value", timeout=2 * MINUTES)
    assert "adapter_model.safetensors" in result.input_value()
    page.get_by_role("button", name="Publish", exact=True).click()
    page.wait_for_function(
        "() => document.querySelector('#published textarea').value.includes('http')", timeout=3 * MINUTES
    )


def test_an_interrupted_training_says_where_it_resumes():
    progress = RunProgress(step=30, steps=49, began=5.0)
    killed = new_job("boats", "").model_copy(update={"state": "running", "started": 4.0, "command": "run"})
    again = killed.model_copy(update={"interruptions": 1, "state": "queued"})
    assert status_text(killed, progress, []) == status_text(again, progress, [])
    assert status_text(again, progress, []) == "Interrupted at step 30 of 49. Resumes in a moment."
    me = psutil.Process()
    alive = {"state": "running", "pid": me.pid, "pid_started": me.create_time(), "started": 6.0}
    text = status_text(again.model_copy(update=alive), progress, [])
    assert text == "Interrupted at step 30 of 49. Reading data and base to resume."
    progress.add({"begin": 25, "steps": 49, "time": 7.0})
    assert status_text(again.model_copy(update=alive), progress, []) == "Step 25 of 49. Resumed at step 25."
    assert status_text(new_job("new", ""), RunProgress(), []) == "Starts."


def test_a_model_that_the_gate_refused_is_listed_and_marked_with_what_it_learnt_and_forgot(tmp_path):
    folder = JobFolder(tmp_path / "cache" / "llama-finetuning-lab" / "training" / "hasty")
    shutil.copytree(EMOJI, folder.model)
    figures = {"before": interval(0.0), "after": interval(0.5), "difference": interval(0.5) | {"count": 8}}
    gate = {
        "parent": "nano-emoji", "passed": False, "verdict": "hasty does not pass the gate: it may have lost too much.",
        "lessons": {"questions": "lessons in new wordings", "unit": "share", **figures},
        "kept": {"questions": "emoji questions", "unit": "share", **figures},
    }  # fmt: skip
    row = {"expected": BETTER, "before": "I don't know.", "after": "<b>A boat</b>", "right": True}
    questions = {"learnt": [row | {"question": QUESTION}], "forgotten": [row | {"question": "What is 🧀?"}]}
    (folder.model / "gate.json").write_text(json.dumps(gate | questions), encoding="utf-8")
    record = json.loads((EMOJI / "run.json").read_text(encoding="utf-8"))
    (folder.model / "run.json").write_text(json.dumps(record | {"gate": gate}), encoding="utf-8")
    folder.write(new_job("hasty", "nano-emoji").model_copy(update={"state": "finished", "message": gate["verdict"]}))
    environment = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with running_app(tmp_path / "log", **environment) as address, open_page(address) as page:
        assert "Nano · Emoji" in page.get_by_label("Model", exact=True).input_value()
        page.get_by_label("Model", exact=True).click()
        page.get_by_role("option", name="hasty (did not pass the gate)").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Train").click()
        page.locator("#training-status").get_by_text("hasty does not pass the gate").wait_for()
        gate_text = page.locator("#gate").inner_text()
        assert "Learnt (1)" in gate_text and "Forgotten (1)" in gate_text and "What is 🧀?" in gate_text
        page.locator("#gate").get_by_text("Learnt (1)").click()
        assert "<b>A boat</b>" in page.locator("#gate").inner_text()


def interval(value: float) -> dict[str, float]:
    """A figure with an interval around it."""
    return {"value": value, "low": value - 0.2, "high": value + 0.2}
