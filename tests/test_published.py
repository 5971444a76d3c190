"""From `training publish` to an answer on the page, with a working, a failing and an unreachable Hub."""

from __future__ import annotations

import json
import re

import pytest
from conftest import EMOJI, command, needs_browser, running_app, visit
from gradio_client import Client
from huggingface_hub import CommitOperationAdd, HfApi, constants
from playwright.sync_api import expect
from test_page import ask, choose, wait_for_answer

from local_hub import LocalHub
from ui.components.model_choices import GROUP_START, INDENTED

pytestmark = [pytest.mark.xdist_group("publish"), needs_browser]
FAULTS = ("401", "403", "429", "500", "503", "cut", "corrupt")
SILENT = "4"  # seconds without a byte after which the app connects again
QUESTION = "What does 🇸🇪 mean?"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A local Hub; uploads from this process use LFS."""
    with pytest.MonkeyPatch.context() as patch, LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield hub


@pytest.fixture(scope="module")
def address(hub, tmp_path_factory):
    """The app, which lists the models of "me"."""
    folder = tmp_path_factory.mktemp("app")
    environment = hub.environment() | {"HUB_AUTHORS": "me", "HUB_NAMESPACE": "", "XDG_CACHE_HOME": str(folder)}
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = SILENT
    with running_app(folder / "log", **environment) as url:
        yield url


@pytest.fixture(scope="module")
def opened(browser, address):
    """One page for all tests, with temperature 0."""
    with visit(browser, address, 1300, 900) as page:
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("number input for Temperature").fill("0")
        page.keyboard.press("Tab")
        yield page


@pytest.fixture
def page(opened, hub):
    """The page with a new conversation. Faults are cleared afterwards."""
    new_conversation(opened)
    yield opened
    hub.clear_faults()


def new_conversation(page) -> None:
    """Press the button and wait until the conversation before has ended: that would end an answer to a new question."""
    before = page.evaluate("conversations.turn()")
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_function("before => ![null, before].includes(conversations.turn())", arg=before)


def write(hub: LocalHub, repo: str, **replaced: bytes) -> None:
    """Publish the emoji adapter; `replaced` has other contents by file name, with underscores for dots."""
    api = HfApi(endpoint=hub.url, token=hub.token(repo.split("/")[0]))
    api.create_repo(repo)
    names = ("README.md", "adapter_config.json", "adapter-f16.gguf")
    content = {name: replaced.get(name.replace(".", "_"), (EMOJI / name).read_bytes()) for name in names}
    operations = [CommitOperationAdd(name, data) for name, data in content.items()]
    api.create_commit(repo, operations, commit_message="Publish")


def chosen(page) -> str:
    """The text of the dropdown, without the marks that draw its groups."""
    return page.get_by_label("Model", exact=True).input_value().lstrip(GROUP_START + INDENTED)


def wait_for_choice(page, text: str) -> None:
    """Wait until the dropdown shows `text`."""
    expect(page.get_by_label("Model", exact=True)).to_have_value(re.compile(f"{re.escape(text)}$"))


def refresh(page) -> None:
    """Choose “Refresh this list” and wait for the list."""
    choose(page, "⟳ Refresh this list")
    page.wait_for_function("!document.querySelector('#model input').value.includes('Refresh')")
    page.locator("#notice", has_text="Refreshing").wait_for(state="detached")
    page.wait_for_timeout(300)


def add(page, text: str) -> None:
    """Enter a repository in the box."""
    box = page.locator("#add-model").get_by_label("Add a model from the Hub")
    if not box.is_visible():
        choose(page, "+ Add a model from the Hub…")
    box.fill(text)
    page.keyboard.press("Enter")


def answer(page, question: str) -> str:
    """Ask and wait for the answer."""
    count = page.locator("#chat .figures", has_text=re.compile(r"\d+ tokens")).count()
    ask(page, question)
    return wait_for_answer(page, count + 1)


def test_a_published_model_is_listed_downloaded_and_answers_also_offline(hub, run, page):
    assert "panda" in answer(page, "What does 🐼 mean?")
    done = command("training", "publish", str(run), "--namespace", "me", **hub.environment(hub.token("me")))
    assert done.returncode == 0, done.stderr
    before = chosen(page)
    refresh(page)
    assert chosen(page).split(" — ")[0] == before.split(" — ")[0]
    hub.fault("stall", match="adapter-f16.gguf", times=None, after=100_000, seconds=60)
    choose(page, "Nano Emoji (me) — 1 MB to download")
    new_conversation(page)
    page.locator("#card", has_text="LoRA r 16, alpha 64 · flags 89").wait_for()
    ask(page, QUESTION)
    page.locator("#chat", has_text="downloading").wait_for()
    hub.clear_faults()  # the next connection, after `SILENT` s, gets the rest
    assert "Sweden" in wait_for_answer(page, 1)
    hub.stop()
    try:
        assert "France" in answer(page, "What does 🇫🇷 mean?")
        refresh(page)
        wait_for_choice(page, "Nano Emoji (me) — in memory")
        assert "Sweden" in answer(page, QUESTION)
        add(page, "me/Another-lora")
        page.locator("#adding", has_text="me/Another-lora is not available: the Hub is unreachable").wait_for()
    finally:
        hub.start()
    refresh(page)


def test_a_refresh_that_fails_says_why(hub, page):
    hub.stop()
    try:
        refresh(page)
        page.locator("#notice", has_text="the Hub is unreachable").wait_for()
        page.locator("#listing", has_text="the Hub is unreachable; using the list of").wait_for()
    finally:
        hub.start()
    refresh(page)
    page.locator("#listing", has_text="reached").wait_for(state="detached")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_error_is_one_sentence_and_the_next_question_works(hub, page, fault):
    write(hub, f"me/Fault-{fault}-lora")
    refresh(page)
    choose(page, f"Fault {fault} (me) — 1 MB to download")
    hub.fault(fault, match=f"Fault-{fault}-lora/resolve", times=None, retry_after=600)
    ask(page, QUESTION, f"Fault-{fault}-lora")
    assert chosen(page).startswith(f"Fault {fault} (me)")
    expect(page.locator("#question textarea")).to_have_value(QUESTION)
    hub.clear_faults()
    assert "Sweden" in answer(page, QUESTION)


def test_a_deleted_model_stays_selected_with_a_message(hub, page):
    write(hub, "me/Gone-lora")
    refresh(page)
    choose(page, "Gone (me) — 1 MB to download")
    HfApi(endpoint=hub.url, token=hub.token("me")).delete_repo("me/Gone-lora")
    refresh(page)  # the end of the refresh may clear the notice that the change of the dropdown shows
    wait_for_choice(page, "Gone (me) — 1 MB to download")
    ask(page, QUESTION, "me/Gone-lora is not on the Hub")
    choose(page, "Nano · Emoji — ")
    assert "Sweden" in answer(page, QUESTION)


def test_any_repository_can_be_added(hub, page, address):
    write(hub, "someone/Emoji-lora")
    write(hub, "someone/Flat-lora", adapter_config_json=json.dumps({"peft_type": "LORA", "r": 0}).encode())
    before = chosen(page)
    add(page, "someone/Flat-lora")
    page.locator("#adding", has_text="someone/Flat-lora has rank 0").wait_for()
    hub.fault("stall", match="someone/Slow-lora")
    add(page, "someone/Slow-lora")
    page.locator("#adding", has_text="someone/Slow-lora is not available").wait_for()
    add(page, "what is this")
    page.locator("#adding", has_text="“what is this” is not a model on the Hub: type user/repo").wait_for()
    assert page.locator("#add-model textarea, #add-model input").input_value() == "what is this"
    assert chosen(page) == before
    add(page, f"{hub.url}/someone/Emoji-lora/tree/main")
    page.locator("#card h2").get_by_text("Emoji (someone)", exact=True).wait_for()
    wait_for_choice(page, "Emoji (someone) — 1 MB to download")
    assert "Sweden" in answer(page, QUESTION)
    wait_for_choice(page, "Emoji (someone) — in memory")
    page.get_by_role("tab", name="Models").click()
    own = page.locator(".model").filter(has=page.get_by_role("heading", name="Emoji (someone)", exact=True))
    own.get_by_role("button", name="Loss, evaluation, recipe").click()
    own.get_by_text("someone/Emoji-lora has no run.json").wait_for()
    own.get_by_role("button", name="Ask this model").click()
    wait_for_choice(page, "Emoji (someone) — in memory")
    programs = Client(address, verbose=False)
    listed = {model["id"] for model in programs.predict(api_name="/models")}
    assert "nano-emoji" in listed and "someone/Emoji-lora" not in listed  # only this visitor sees it
    assert "Sweden" in programs.predict(QUESTION, "someone/Emoji-lora", temperature=0, api_name="/ask")
    with pytest.raises(Exception, match="someone/none is not on the Hub, or it is private"):
        programs.predict(QUESTION, "someone/none", api_name="/ask")
