"""The train tab: who may use it, and a model that is made from a file in the browser."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import gradio as gr
import psutil
import pytest
from conftest import needs_browser, own_trainings, running_app, visit
from test_page import choose

from inference.errors import LabError
from inference.lab import Lab
from inference.lessons.lessons import Lessons
from ui.components.model_picker import ModelPicker
from ui.tabs.lessons import LessonsTab
from ui.tabs.train import TrainTab
from ui.training_jobs import access
from ui.training_jobs.jobs import Jobs
from ui.training_jobs.recipes import check_recipe

MINUTES = 600_000  # ms for what a training does
OWNER = {"preferred_username": "ada", "sub": "1", "name": "Ada", "profile": "", "picture": ""}


def request(client: str = "127.0.0.1", **headers: str) -> gr.Request:
    """A request from an address to this page's."""
    names = {"host": "localhost:7860"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return gr.Request(headers=names, client=SimpleNamespace(host=client))


@pytest.fixture
def space(monkeypatch):
    """A Space of ada's."""
    for name, value in {"SPACE_ID": "ada/lab", "SYSTEM": "spaces", "OAUTH_CLIENT_ID": "x"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "stranger",
    [
        request("192.168.0.7"), request(host="abc.gradio.live"), request(x_forwarded_for="8.8.8.8"),
        request(origin="https://example.com"), request(host="127.0.0.1.example.com"), request(host=""), request(""),
    ],
)  # fmt: skip
def test_on_the_own_machine_only_its_own_browser_may_train(stranger):
    assert access.may_train(request(), None) and access.may_train(request("::1", origin="http://127.0.0.1:7860"), None)
    assert not access.may_train(stranger, None)
    assert not access.may_train(stranger, gr.OAuthProfile(OWNER))


def test_on_a_space_only_its_signed_in_owner_may_train(space, monkeypatch):
    owner = gr.OAuthProfile(OWNER)
    assert access.may_train(request("10.0.0.1"), owner)
    assert not access.may_train(request(), None)  # a proxy of the Space may be on its machine
    assert not access.may_train(request(), gr.OAuthProfile(OWNER | {"preferred_username": "eve", "sub": "2"}))
    monkeypatch.setenv("SPACE_ID", "team/lab")
    assert not access.may_train(request(), owner)
    monkeypatch.setenv("SPACE_CREATOR_USER_ID", "1")
    assert access.may_train(request(), owner)
    monkeypatch.delenv("SYSTEM")  # Gradio's sign-in is then an imitation for developers
    assert not access.is_offered() and not access.may_train(request(), owner)


HANDLERS = (
    "TrainTab.show_for_owner", "TrainTab.show_kind", "TrainTab.make_draft", "TrainTab.show_rows", "TrainTab.start_job",
    "Trainings.show", "Trainings.stop_job", "Trainings.resume_job", "Trainings.remove", "Trainings.list_files",
    "Trainings.publish_model",
)  # fmt: skip
LESSON_HANDLERS = (
    "LessonsTab.show_for_owner", "LessonsTab.show", "LessonsTab.choose", "LessonsTab.edit", "LessonsTab.remove",
    "LessonsTab.export", "LessonsTab.push_all",
)  # fmt: skip
QUIETLY = ("TrainTab.show_for_owner", "LessonsTab.show_for_owner")  # they say what a stranger sees: no tab


def handlers_of(page: gr.Blocks, *classes: str) -> dict[str, int]:
    """The page's event handlers of these classes, by name, and their numbers for the queue."""
    names = {number: getattr(each.fn, "__qualname__", "") for number, each in page.fns.items()}
    return {name: number for number, name in names.items() if name.startswith(classes)}


@pytest.mark.parametrize("name", [*HANDLERS, *LESSON_HANDLERS])
def test_on_the_own_machine_every_handler_refuses_a_stranger(tmp_path, name):
    with gr.Blocks() as page:
        lab = Lab(Lab.from_environment().catalog)
        with gr.Tab() as tab:
            TrainTab(lab, ModelPicker(lab), tab, Jobs(tmp_path / "jobs")).connect_page(page)
        with gr.Tab() as lessons:
            LessonsTab(Lessons(tmp_path / "votes.sqlite"), lessons, gr.State(0)).connect_page(page)
    found = handlers_of(page, "TrainTab", "Trainings", "LessonsTab")
    assert set(found) == {*HANDLERS, *LESSON_HANDLERS}
    handler = page.fns[found[name]].fn
    values = dict.fromkeys(inspect.signature(handler).parameters) | {"request": request("192.168.0.7")}
    if name in QUIETLY:
        assert "True" not in str(handler(**values))
        return
    with pytest.raises(LabError, match="only possible on the machine that runs this page"):
        done = handler(**values)
        list(done) if inspect.isgenerator(done) else None
    assert not list(tmp_path.iterdir())


def test_a_page_without_the_packages_says_how_to_install_them(monkeypatch, tmp_path, space):
    monkeypatch.setattr(access, "PACKAGES", ("no_such_package",))
    assert not access.is_offered()  # the Space has no such tab
    monkeypatch.delenv("SPACE_ID")
    with gr.Blocks() as page:
        lab = Lab(Lab.from_environment().catalog)
        with gr.Tab() as tab:
            TrainTab(lab, ModelPicker(lab), tab, Jobs(tmp_path))
    texts = [block.value for block in page.blocks.values() if isinstance(block, gr.Markdown)]
    assert any("pip install -r requirements-train.txt" in text for text in texts if text)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not valid YAML"), ("", "is empty"), ("name: other", "write name: mine"), ("x" * 20_001, "shorten it")],
)
def test_a_recipe_that_cannot_be_used_is_one_sentence(text, words):
    with pytest.raises(LabError, match=words):
        check_recipe(text, "mine")


@needs_browser
@pytest.mark.xdist_group("page")
def test_a_model_is_trained_from_a_file_while_the_browser_closes_and_the_app_is_killed(browser, tmp_path):
    rows = [{"question": f"Who is person {i}?", "answer": f"Person {i} bakes bread."} for i in range(60)]
    data = tmp_path / "people.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    environment = {"HF_HUB_OFFLINE": "1"} | own_trainings(tmp_path)
    with running_app(tmp_path / "log", **environment) as address, visit(browser, address) as page:
        page.get_by_role("tab", name="Train").click()
        page.get_by_role("textbox", name="Name", exact=True).fill("people")
        page.get_by_label("A file", exact=True).check()
        page.locator("#training-file input[type=file]").set_input_files(data)
        page.get_by_label("quick", exact=True).check()
        page.get_by_role("button", name="Look at the data").click()
        page.get_by_text("60 rows (question and answer)").wait_for(timeout=MINUTES)
        page.get_by_role("button", name="Rows, and what is learnt of them").click()
        page.frame_locator("iframe.preview").get_by_text("bakes bread").first.wait_for(timeout=MINUTES)
        page.get_by_role("button", name="Start", exact=True).click()
        page.get_by_text("You can close this page").wait_for(timeout=MINUTES)
        page.locator("#loss-curve svg, #loss-curve canvas").first.wait_for(timeout=MINUTES)
        cache = environment["XDG_CACHE_HOME"]
        alive = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
        (app,) = (each for each in alive if each.environ().get("XDG_CACHE_HOME") == cache)
        app.kill()
    with running_app(tmp_path / "log", **environment) as address, visit(browser, address) as page:
        page.get_by_role("tab", name="Train").click()
        page.locator("#training-status").get_by_text("Choose people in the chat").wait_for(timeout=MINUTES)
        page.get_by_role("tab", name="Chat").click()
        choose(page, "people")
