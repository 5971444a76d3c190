"""Conversations kept in the browser: what is stored and read back, files, links, two tabs, and storage that is full."""

from __future__ import annotations

import json
import re

import gradio as gr
import pytest
from conftest import needs_browser, open_settings, visit
from playwright.sync_api import expect
from test_page import ask, choose, wait_for_answer

from inference.engines import Figures
from inference.errors import LabError
from inference.lab import Lab
from inference.visitors.values import AskValues
from ui.components.conversation import model_marker, to_messages, with_figures
from ui.components.model_picker import ModelPicker
from ui.conversations.kept_conversation import (
    FORMAT,
    MAX_KEPT,
    as_markdown,
    history_of,
    messages_of,
    read_export,
    title_of,
)
from ui.conversations.report import FORBIDDEN, FULL, Report
from ui.conversations.share_link import read_fragment, to_fragment
from ui.views.context_gauge import context_gauge_html

pytestmark = pytest.mark.xdist_group("page")
FIGURES = Figures(1200, 0, 48, 0.1, 30.0, "stop", dropped_turns=2, context_tokens=4096)
HISTORY = [
    {"role": "user", "content": {"path": "/recording.wav"}},
    {"role": "user", "content": "What does\n🇸🇪 <b>mean</b>?"},
    {"role": "assistant", "content": with_figures("The *flag* of Sweden.", "Nano & Co", FIGURES)},
    {"role": "assistant", "content": "Let me think.", "metadata": {"title": "Thought"}},
    model_marker("Nano"),
]
KEPT = {
    "id": "a-1", "title": "Sweden", "model": "nano", "changed": 1, "revision": "r-1",
    "messages": [{"role": "user", "content": "What does 🇸🇪 mean?", "figures": ""}],
}  # fmt: skip


def exported(**changes: object) -> bytes:
    """A file with one conversation."""
    return json.dumps({"format": FORMAT, "conversations": [{**KEPT, **changes}]}).encode()


def test_a_kept_conversation_gives_the_model_the_same_messages():
    messages = messages_of(HISTORY)
    again = history_of(messages)
    assert to_messages(again, "") == to_messages(HISTORY, "")
    assert messages_of(again) == messages
    assert messages[1].figures.startswith("Nano & Co · 30 tokens/s")
    assert title_of(messages) == "What does 🇸🇪 <b>mean</b>?"
    assert as_markdown("Flags", messages).startswith(
        "# Flags\n\n## Question\n\nWhat does\n🇸🇪 <b>mean</b>?\n\n## Answer"
    )


def test_an_export_is_read_as_it_was_written():
    (conversation,) = read_export(exported(title="<script>alert(1)</script>"))
    assert conversation.title == "<script>alert(1)</script>"  # text: the list and the chatbot escape it
    assert conversation.model_dump() == {**KEPT, "title": conversation.title}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (exported()[:-9], "cut off"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b"[]", "not an export of conversations"),
        (b'{"conversations": []}', "not an export of conversations"),
        (b" " * (4 * MAX_KEPT + 1), "15.6 MB, more than a browser keeps"),
        (json.dumps({"format": FORMAT, "conversations": ["text"]}).encode(), "conversation 1 of the file is broken"),
        (exported(title=None), "the title can't be null"),
        (exported(title="x" * 121), "the title has 121 characters"),
        (exported(id="../x"), "the id can't be “../x”"),
        (exported(changed=1e400), "can't be"),
        (exported(messages=[]), "the messages can't be a list"),
        (exported(messages=[{"role": "system", "content": "Obey."}]), "the role can't be “system”"),
        (exported(messages=[{"role": "user", "content": "half \ud800"}]), "half a character"),
        (exported(extra=1), "the extra can't be 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_export_is_one_sentence(content, sentence):
    with pytest.raises(LabError, match="^[^\n]+$") as error:
        read_export(content)
    assert sentence in str(error.value)


def test_a_report_of_a_hostile_browser_lists_what_is_valid():
    good = {"id": "a", "title": "A", "model": "nano", "changed": 1}
    report = Report(listed=[good, 7, {**good, "title": 1}], conversation={"id": []}, found=3)
    assert [summary.id for summary in report.summaries] == ["a"]
    assert report.notice.startswith("2 of the conversations in this browser cannot be read")
    with pytest.raises(LabError, match="is broken and cannot be shown: "):
        assert report.opened
    assert "95% of this browser's room" in Report(used=MAX_KEPT * 95 // 100).notice
    assert "search for the others" in Report(listed=[good], found=300).notice


def test_a_link_carries_question_model_and_settings():
    values = AskValues(question="What does 🇸🇪 & #mean=?", model="nano", temperature=1, stop=["\n", "."], seed=7)
    fragment = to_fragment(values)
    shared = read_fragment(f"#{fragment}", {"nano"})
    assert (shared.question, shared.model, shared.problem) == (values.question, "nano", "")
    assert shared.settings.sampling == values.sampling
    assert to_fragment(AskValues(question="Hi", model="nano")) == "question=Hi&model=nano"
    with pytest.raises(LabError, match="shorten the question"):
        to_fragment(AskValues(question="word " * 2000, model="nano"))


@pytest.mark.parametrize(
    ("fragment", "problem"),
    [
        ("question=Hi&model=gone", "This link asks “gone”, a model that this page does not list"),
        ("question=Hi&temperature=hot", "The temperature can't be “hot”"),
        ("question=Hi&temperature=1e999", "The temperature can't be infinite"),
        ("question=Hi&seed=[[", "The seed can't be"),
        ("question=Hi&stop=" + "x" * 10_000, "The stop string has 10,000 characters"),
        ("question=Hi&question_=1", "can't be"),
        ("question=%00Hi%ff", ""),
    ],
)
def test_a_broken_link_is_one_sentence_and_keeps_its_question(fragment, problem):
    shared = read_fragment(fragment, {"nano"})
    assert shared.question.startswith("Hi")
    assert problem in shared.problem and bool(problem) == bool(shared.problem)


def test_the_gauge_says_what_is_left_and_what_was_dropped():
    gauge = context_gauge_html(FIGURES)
    assert "Context: 1,248 of 4,096 tokens, 2,848 left · without the oldest 2 turns" in gauge
    assert context_gauge_html(Figures(1, 0, 1, None, None, "stop")) == ""


@pytest.fixture
def page(browser, address):
    """A page in a window that is wide enough for the list of conversations."""
    with visit(browser, address, 1300, 850) as page:
        yield page


def listed(page, *titles: str) -> None:
    """Wait until the list has these titles, the newest first."""
    page.wait_for_function(
        "titles => JSON.stringify([...document.querySelectorAll('#history label')].map((each) => each.innerText))"
        " === JSON.stringify(titles)", arg=list(titles),
    )  # fmt: skip


def open_conversation(page, title: str) -> None:
    """Choose a conversation in the list."""
    page.locator("#history label", has_text=title).click()


@needs_browser
def test_conversations_are_found_again_after_a_reload(page):
    ask(page, "What does 🇸🇪 mean?")
    wait_for_answer(page, 1)
    listed(page, "What does 🇸🇪 mean?")
    page.locator("#context", has_text="tokens").wait_for()
    page.locator("#new").click()
    page.locator("#chat .bot.message").wait_for(state="detached")
    ask(page, "What does 🐼 mean?")
    wait_for_answer(page, 1)
    listed(page, "What does 🐼 mean?", "What does 🇸🇪 mean?")
    page.reload()
    page.locator("#chat .bot.message", has_text="panda").wait_for()
    open_conversation(page, "🇸🇪")
    page.locator("#chat .bot.message", has_text="Sweden").wait_for()
    page.locator("#rename").click()
    page.locator("#title").get_by_role("textbox").fill("My <i>flag</i>")
    page.keyboard.press("Enter")
    listed(page, "What does 🐼 mean?", "My <i>flag</i>")
    ask(page, "And 🐧?")
    wait_for_answer(page, 2)
    listed(page, "My <i>flag</i>", "What does 🐼 mean?")
    page.locator("#search").get_by_role("textbox").fill("PANDA")
    listed(page, "What does 🐼 mean?")


@needs_browser
def test_another_conversation_ends_the_running_answer_and_keeps_it(page):
    choose(page, "Babble — ")
    open_settings(page)
    page.get_by_label("number input for Max tokens").fill("2048")
    page.keyboard.press("Tab")
    ask(page, "Tell me about 🐙")
    page.wait_for_function("document.querySelector('#chat .bot.message')?.innerText.length > 60")  # not “thinking”
    page.locator("#new").click()
    page.locator("#send").wait_for()
    listed(page, "Tell me about 🐙")
    expect(page.locator("#chat .message")).to_have_count(0)
    page.wait_for_timeout(500)  # nothing of the answer comes after it
    assert page.locator("#chat .message").count() == 0
    open_conversation(page, "🐙")
    page.locator("#chat .bot.message").wait_for()


@needs_browser
def test_export_delete_undo_and_import(page, tmp_path):
    ask(page, "What does 🐼 mean?")
    wait_for_answer(page, 1)
    listed(page, "What does 🐼 mean?")
    with page.expect_download() as markdown:
        page.locator("#as-markdown").click()
    markdown.value.save_as(tmp_path / "file.md")
    assert (tmp_path / "file.md").read_text().startswith("# What does 🐼 mean?\n\n## Question")
    with page.expect_download() as exported:
        page.locator("#as-json").click()
    exported.value.save_as(tmp_path / "file.json")
    page.locator("#delete").click()
    listed(page)
    page.locator("#chat .bot.message").wait_for(state="detached")
    page.locator("#undo-delete").click()
    listed(page, "What does 🐼 mean?")
    page.locator("#chat .bot.message", has_text="panda").wait_for()
    page.locator("#delete").click()
    listed(page)
    (tmp_path / "cut.json").write_bytes((tmp_path / "file.json").read_bytes()[:-20])
    for file, notice in (("cut.json", "cut off"), ("file.json", "The file has 1 conversation.")):
        with page.expect_file_chooser() as chooser:
            page.locator("#import").click()
        chooser.value.set_files(tmp_path / file)
        page.locator("#import-notice", has_text=notice).wait_for()
    listed(page, "What does 🐼 mean?")
    open_conversation(page, "🐼")
    page.locator("#chat .bot.message", has_text="panda").wait_for()


@needs_browser
def test_a_retry_with_another_model_is_kept(page):
    ask(page, "What does 🇸🇪 mean?")
    assert "Sweden" in wait_for_answer(page, 1)
    choose(page, "Nano — ")
    page.locator("#chat .marker").wait_for()
    page.get_by_label("Retry").first.click()
    page.locator("#chat .bot.message", has_text="I don't know that one yet.").wait_for()
    wait_for_answer(page, 1)
    page.wait_for_function("conversations.list('')[0].listed[0]?.model === 'nano'")
    page.reload()
    page.locator("#chat .bot.message", has_text="I don't know that one yet.").wait_for()
    expect(page.get_by_label("Model", exact=True)).to_have_value(re.compile("^[\u2060\u200b]*Nano — "))


def test_a_new_default_model_is_selected_but_for_a_conversation_or_a_link():
    lab = Lab(Lab.from_environment().catalog)
    with gr.Blocks():
        picker = ModelPicker(lab)
    first, other = lab.catalog.entries[0].id, lab.catalog.entries[1].id
    assert picker.select_default([], "", first) == gr.skip()
    lab.models.show_trained({}, default=other)
    assert picker.select_default([], "", first).value == other
    for history, question, model in (([{"role": "user"}], "", first), ([], "from a link", first), ([], "", other)):
        assert picker.select_default(history, question, model) == gr.skip()


@needs_browser
def test_a_link_fills_the_box_and_sends_nothing(page, address):
    choose(page, "Nano — ")
    open_settings(page)
    page.get_by_label("Seed").fill("7")
    page.locator("#question textarea").fill("What does 🇸🇪 mean?")
    page.locator("#share").click()
    link = page.locator("#link").get_by_role("textbox")
    expect(link).to_have_value(re.compile("question="))
    url = link.input_value()
    assert url.startswith(f"{address}#") and "&question=What" in url and "seed=7" in url and "model=nano&" in f"{url}&"
    question = page.locator("#question textarea")
    for opened, notice in (
        (url.replace("model=nano", "model=gone"), "This link asks “gone”, a model that this page does not list"),
        (url, "press Enter to send it"),
    ):
        page.goto(opened)
        page.locator("#notice", has_text=notice).wait_for()
        expect(question).to_have_value("What does 🇸🇪 mean?")
    page.locator("#card", has_text="5.2 million parameters").wait_for()  # the model has changed
    expect(page.get_by_label("Model", exact=True)).to_have_value(re.compile("Nano — "))
    expect(page.get_by_label("Seed")).to_have_value("7")
    assert "press Enter to send it" in page.locator("#notice").inner_text()  # and the notice stays
    assert page.locator("#chat .message").count() == 0 and "#" not in page.url


@needs_browser
def test_two_tabs_of_one_browser_keep_both_versions(page, address):
    one, other = page, page.context.new_page()
    other.goto(address)
    other.locator("#left.open").wait_for()
    ask(one, "What does 🇸🇪 mean?")
    listed(other, "What does 🇸🇪 mean?")  # without a reload
    open_conversation(other, "🇸🇪")
    other.locator("#chat .bot.message", has_text="Sweden").wait_for()
    ask(one, "What does 🐼 mean?")
    wait_for_answer(one, 2)
    one.wait_for_function("conversations.list('panda')[0].found === 1")
    ask(other, "What does 🐧 mean?")
    wait_for_answer(other, 2)
    listed(one, "What does 🇸🇪 mean?", "What does 🇸🇪 mean?")
    assert [other.evaluate(f"conversations.list('{word}')[0].found") for word in ("panda", "penguin")] == [1, 1]


@needs_browser
@pytest.mark.parametrize(
    ("storage", "notice"),
    [
        ("Storage.prototype.setItem = () => {throw new DOMException('', 'QuotaExceededError')}", FULL),
        (
            "Object.defineProperty(window, 'localStorage', {get() {throw new DOMException('', 'SecurityError')}})",
            FORBIDDEN,
        ),
    ],
    ids=["full", "forbidden"],
)
def test_without_room_the_page_answers_and_says_so(page, storage, notice):
    page.add_init_script(storage)
    page.reload()
    page.locator("#left.open").wait_for()
    ask(page, "What does 🐼 mean?")
    assert "panda" in wait_for_answer(page, 1)
    page.locator("#conversations-notice", has_text=notice).wait_for()
    with page.expect_download():
        page.locator("#as-markdown").click()
