"""The page in Chromium and its endpoints through gradio_client, as visitors and programs use them."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gradio as gr
import pytest
from conftest import (
    PATIENCE,
    choose_in,
    chromium,
    enter_question,
    needs_browser,
    open_settings,
    speak,
    stop_a_long_answer,
    visit,
)
from gradio_client import Client, handle_file
from playwright.sync_api import expect

from inference.catalog import Catalog
from inference.lab import Lab
from inference.settings import Settings
from inference.visitors.limits import VisitorLimits
from ui.components.composer import Composer
from ui.components.conversation import to_messages
from ui.voice.spoken_answers import SpokenAnswers
from ui.voice.voice_input import VoiceInput
from ui.voice.voice_settings import VoiceSettings

pytestmark = pytest.mark.xdist_group("page")


@pytest.fixture(scope="module")
def browser(question_aloud):
    """One browser for all tests. Its microphone plays the question."""
    with chromium(question_aloud) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    """A page of a new visitor. It must not send requests to another host."""
    with visit(browser, address) as page:
        yield page


def ask(page, text: str, refused: str = "") -> None:
    """Ask a question, which is `refused` in these words, if they are given."""
    enter_question(page, "#question", text, refused)


def wait_for_answer(page, count: int) -> str:
    """The text of the count-th answer, when its figures are shown."""
    done = page.locator("#chat .figures", has_text=re.compile(r"\d+ tokens"))
    done.nth(count - 1).wait_for()
    return page.locator("#chat .bot.message").last.inner_text()


def choose(page, name: str) -> None:
    """Select another model, by its name and how its state begins, or another entry of the list. Returns when the model
    is selected: what changes with it would else overwrite what a test does next."""
    choose_in(page, "Model", name)
    model, state, _ = name.partition(" — ")
    if state:
        shown = page.locator("#card h2, #chat .marker")
        shown.filter(has_text=re.compile(rf"^(Model changed to )?{re.escape(model)}$")).last.wait_for()


@needs_browser
def test_ask_switch_and_ask_again(page):
    ask(page, "What does 🇸🇪 mean?")
    assert "Sweden" in wait_for_answer(page, 1)
    choose(page, "Nano — ")
    page.locator("#chat .marker", has_text="Model changed to Nano").wait_for()
    ask(page, "What does 🇸🇪 mean?")
    assert "I don't know that one yet." in wait_for_answer(page, 2)
    assert "Sweden" in page.locator("#chat").inner_text()


@needs_browser
def test_a_model_that_is_not_available_says_why(page):
    choose(page, "Llama 3.2 1B · FineTome — not published")
    page.locator("#notice", has_text="python -m training run finetome-1b").wait_for()
    choose(page, "Llama 3.2 1B — 808 MB to download")
    page.locator("#notice", has_text="is unreachable").wait_for()


@needs_browser
def test_bad_questions_keep_the_text_and_the_conversation(page):
    ask(page, "  ", "The question is empty")
    ask(page, "word " * 2000, "too long")
    expect(page.locator("#question textarea")).to_have_value(re.compile("^word word"))
    ask(page, "What does 🐼 mean?")
    assert "panda" in wait_for_answer(page, 1)


@needs_browser
def test_an_empty_seed_stays_empty_and_a_wrong_one_is_refused(page):
    open_settings(page)
    seed = page.get_by_label("Seed")
    seed.wait_for()
    assert seed.input_value() == ""
    seed.fill("seven")
    ask(page, "What does 🐼 mean?", "The seed can't be")
    seed.fill("7")
    ask(page, "What does 🐼 mean?")
    assert "panda" in wait_for_answer(page, 1)


# The end of the stream of results arrives late, as on a slow network.
LATE_END = """
const send = window.fetch;
window.ended = 0;
window.fetch = async (...sent) => {
  const response = await send(...sent);
  if (!response.url.includes("/queue/data")) return response;
  const late = new TransformStream({async transform(bytes, controller) {
    if (new TextDecoder().decode(bytes).includes("close_stream")) {
      window.ended += 1;
      await new Promise((done) => setTimeout(done, 2000));
    }
    controller.enqueue(bytes);
  }});
  return new Response(response.body.pipeThrough(late), response);
};
"""


@needs_browser
def test_a_question_that_is_asked_while_the_stream_of_results_ends_gets_its_answer(browser, address):
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE)
        context.add_init_script(LATE_END)
        page = context.new_page()
        page.goto(address)
        for number in (1, 2, 3):
            page.wait_for_function(f"window.ended >= {number}")
            page.locator("#chat .example").first.click() if number == 1 else ask(page, "Which emoji shows a panda?")
            wait_for_answer(page, number)


@needs_browser
def test_a_long_answer_can_be_stopped(page):
    choose(page, "Babble — ")
    stop_a_long_answer(page, ask, "#stop", "#chat .figures")
    choose(page, "Nano · Emoji — ")
    ask(page, "What does 🐼 mean?")
    page.locator("#chat .bot.message", has_text="panda").wait_for()


@needs_browser
def test_retry_answers_again_and_undo_gives_the_question_back(page):
    question = "What does 🐧 mean?"  # no other test asks it: only the second time is all of it in the cache
    ask(page, question)
    assert "penguin" in wait_for_answer(page, 1)
    figures = page.locator("#chat .figures")
    prompt = int(re.search(r"prompt has (\d+) tokens", figures.text_content())[1])
    page.get_by_label("Retry").last.click()
    figures.filter(has_text=f"{prompt} tokens, {prompt - 1} of them reused").wait_for()
    assert "penguin" in page.locator("#chat .bot.message").last.inner_text()
    page.get_by_label("Undo").last.click()
    figures.wait_for(state="detached")
    expect(page.locator("#question textarea")).to_have_value(question)


@needs_browser
def test_another_model_answers_the_last_question_instead(page):
    ask(page, "What does 🇸🇪 mean?")
    assert "Sweden" in wait_for_answer(page, 1)
    page.get_by_role("button", name="Retry with Nano", exact=True).click()
    page.locator("#chat .bot.message", has_text="I don't know that one yet.").wait_for()
    wait_for_answer(page, 1)
    assert page.locator("#chat .user.message").count() == 1 and "Sweden" not in page.locator("#chat").inner_text()


@needs_browser
def test_an_example_answers_with_one_click_and_is_read_aloud_until_it_is_stopped(page):
    page.evaluate("""() => {
      window.sounds = [];
      const play = HTMLMediaElement.prototype.play;
      HTMLMediaElement.prototype.play = function () {
        window.sounds.push(this);
        return play.call(this);
      };
    }""")
    page.locator("#chat .example").nth(1).click()
    assert "🐼" in wait_for_answer(page, 1)
    page.get_by_role("button", name="Read aloud").click()
    page.wait_for_function("sounds.length && sounds[0].currentTime > 0.1 && sounds[0].duration > 0.5")
    page.keyboard.press("Escape")
    page.locator("#stop").wait_for(state="hidden")
    page.wait_for_function("sounds.every((sound) => sound.paused)")


@needs_browser
def test_an_edited_question_is_asked_again(page):
    ask(page, "What does 🐼 mean?")
    wait_for_answer(page, 1)
    page.locator("#chat .user.message").last.hover()
    page.get_by_label("Edit").last.click()
    page.locator("#chat textarea").last.fill("What does 🐙 mean?")
    page.get_by_label("Submit").last.click()
    page.locator("#chat .bot.message", has_text="octopus").wait_for()
    assert "🐼" not in page.locator("#chat").inner_text()


@needs_browser
def test_the_line_under_an_answer_opens(page):
    ask(page, "What does 🐼 mean?")
    wait_for_answer(page, 1)
    assert "reused" not in page.locator("#chat").inner_text()
    page.locator("#chat .figures summary").click()
    page.locator("#chat .figures").get_by_text(re.compile("tokens, [0-9]+ of them reused")).wait_for()


@needs_browser
def test_a_message_cannot_load_a_picture_of_another_host(browser, address):
    requests = []

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)

    opened = visit(browser, address, others_allowed=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server, opened as page:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        ask(page, f'![one]({url}/1.png) <img src="{url}/2.png"> <video src="{url}/3.mp4" autoplay></video>')
        wait_for_answer(page, 1)
        page.locator(f'#chat img[src="{url}/1.png"]').wait_for(state="attached")  # the browser knows the address
        page.wait_for_timeout(500)
        assert not requests
        server.shutdown()


@needs_browser
def test_a_spoken_question_is_transcribed_and_answered(page):
    for count in (1, 2, 3):  # a recording on a busy machine may have gaps: speak again
        speak(page, "voice")
        if "🐼" in wait_for_answer(page, count):
            break
    assert "find the emoji for a panda" in page.locator("#chat .user.message").last.inner_text()
    assert "🐼" in page.locator("#chat .bot.message").last.inner_text()
    assert page.locator("#chat audio").count() == count
    page.locator("#transcript", has_text="Offline speech model").wait_for()


@needs_browser
def test_a_transcript_can_be_edited_before_it_is_sent(page):
    open_settings(page)
    page.get_by_label("Send when I stop speaking").uncheck()
    box = page.locator("#question textarea")
    for count in (1, 2, 3):
        box.fill("")
        speak(page, "voice")
        page.locator("#chat audio").nth(count - 1).wait_for(state="attached")
        if "find the emoji for a panda" in box.input_value():
            break
    assert "find the emoji for a panda" in box.input_value()
    assert page.locator("#chat .bot.message").count() == 0
    box.fill("Which emoji shows an octopus?")
    page.locator("#send").click()
    assert "🐙" in wait_for_answer(page, 1)


def test_a_transcription_is_stopped_by_the_button_and_by_leaving(question_aloud):
    lab = Lab(Catalog.read(Settings().catalog))
    with gr.Blocks():
        voice = VoiceInput(lab, VisitorLimits(at_once=1), Composer("Ask"), VoiceSettings())
    request = gr.Request(session_hash="visit")
    for stop in (voice.running.stop, voice.running.close_visit):
        steps = voice.transcribe(request, str(question_aloud), "en")
        assert "…" in next(steps)[1]
        stop(request)
        *_, (text, line, notice, *_) = steps
        assert (text, notice) == ("", "") and "Stopped." in line
    lab.close()


def test_reading_aloud_starts_with_the_first_sentence_of_a_growing_answer():
    lab, request = Lab(Catalog.read(Settings().catalog)), gr.Request(session_hash="visit")
    with gr.Blocks():
        spoken = SpokenAnswers(lab, Composer("Ask"))
    reading = spoken.start(request, "A panda eats bamboo. It is")
    sentences = spoken.sentences(reading)
    sound, seconds = next(sentences)
    assert sound.startswith(b"RIFF") and 0.5 < seconds < 5
    reading.text, reading.complete = "A panda eats bamboo. It is black and white.", True
    assert len(list(sentences)) == 1
    spoken.start(request, "A panda eats bamboo. It is black and white.", complete=True)
    steps = spoken.read(request)
    assert next(steps)[0].startswith(b"RIFF")
    spoken.running.stop(request)
    assert [step[0] for step in steps] == [None]
    spoken.start(request, "🇸", complete=True).text = " "
    *_, (sound, notice, *_) = spoken.read(request)
    assert sound is None and "nothing to read aloud" in notice


def test_thoughts_are_not_part_of_the_conversation():
    chatbot = gr.Chatbot(reasoning_tags=[("<think>", "</think>")], group_consecutive_messages=False)
    shown = chatbot.postprocess([
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>Hm.</think>Hello."}
    ])  # fmt: skip
    history = [message.model_dump() for message in shown.root]
    assert [(message["metadata"] or {}).get("title") for message in history] == [None, "Reasoning", None]
    assert [message["content"] for message in to_messages(history, "")] == ["Hi", "Hello."]


def test_programs_send_recordings(address, question_aloud, tmp_path):
    client = Client(address, verbose=False)
    (tmp_path / "text.wav").write_text("This is a text, not a sound.")
    with pytest.raises(Exception, match="not a readable recording"):
        client.predict(handle_file(tmp_path / "text.wav"), "", api_name="/transcribe")
    record = client.predict(handle_file(question_aloud), "", api_name="/transcribe")
    assert "find the emoji for a panda" in record["text"] and record["language"] == "en"
    transcript, answer = client.predict(handle_file(question_aloud), "nano-emoji", "", api_name="/ask_voice")
    assert "panda" in transcript and "🐼" in answer


def test_programs_list_the_models_and_ask(address):
    client = Client(address, verbose=False)
    assert client.predict(api_name="/models")[0]["id"] == "nano-emoji"
    job = client.submit("What does 🇸🇪 mean?", "nano-emoji", temperature=0, api_name="/ask")
    assert job.result() == "🇸🇪 is the flag of Sweden."
    parts = job.outputs()
    assert all(later.startswith(earlier) for earlier, later in zip(parts, parts[1:], strict=False))
    with pytest.raises(Exception, match="There is no model “nanno”"):
        client.predict("hello", "nanno", api_name="/ask")
    with pytest.raises(Exception, match="The question is empty"):
        client.predict(" ", "nano", api_name="/ask")
