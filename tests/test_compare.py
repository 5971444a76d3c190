"""The compare tab: its functions, the page in Chromium, and its endpoints through gradio_client."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx2
import pytest
from conftest import choose_in, enter_question, needs_browser, open_page, speak, stop_a_long_answer
from gradio_client import Client
from playwright.sync_api import expect

from inference.arena.compare import ANY_MODEL, ask_all, choose_models
from inference.arena.text_diff import mark_differences
from inference.arena.votes import LETTERS, Votes
from inference.catalog import Catalog
from inference.engines import Message
from inference.errors import LabError
from inference.lab import Lab
from inference.settings import Settings
from inference.visitors.limits import VisitorLimits
from ui.components.answer_settings import AnswerSettings
from ui.tabs.compare import CompareTab
from ui.voice.voice_settings import VoiceSettings

pytestmark = pytest.mark.xdist_group("page")
SWEDEN = "What does 🇸🇪 mean?"
NOT_PUBLISHED = "finetome-1b"


@pytest.fixture(scope="module")
def lab():
    """The shipped catalog with nothing in memory."""
    lab = Lab(Catalog.read(Settings().catalog))
    yield lab
    lab.close()


@pytest.fixture
def tab(lab, tmp_path):
    """The tab in a page of its own, with an empty votes file."""
    with gr.Blocks():
        votes = Votes(tmp_path / "votes.sqlite")
        return CompareTab(lab, votes, VisitorLimits(), AnswerSettings(), VoiceSettings())


def rounds(tab: CompareTab, question: str, *models: str, blind: bool, visit: str = "visit") -> list[dict]:
    """All updates that the tab sends to a visitor who asks. The round of the last one stays on the server."""
    request = gr.Request(session_hash=visit)
    return list(tab.ask(request, question, blind, *models, "", 0.0, 0.9, 64, None))


def sent(step: dict, tab: CompareTab) -> str:
    """An update as it reaches the browser."""
    return " ".join(str(getattr(v, "value", v)) for part, v in step.items() if part is not tab.round)


def test_models_answer_concurrently_and_one_that_fails_does_not_stop_the_others(lab):
    question = [Message(role="user", content=SWEDEN)]
    *_, answers = ask_all(lab, ["nano-emoji", NOT_PUBLISHED, "nano"], question)
    assert [a.text for a in answers] == ["🇸🇪 is the flag of Sweden.", "", "I don't know that one yet."]
    assert "is not published yet" in answers[1].error and answers[0].complete and not answers[1].complete
    with pytest.raises(LabError, match="The question is empty"):
        list(ask_all(lab, ["nano"], [Message(role="user", content=" ")]))
    *_, answers = ask_all(lab, ["nano-emoji", "nano"], question, cancelled=lambda: True)
    assert {a.figures.finish_reason for a in answers} == {"cancelled"}


def test_battles_are_between_different_models_that_are_ready(lab):
    ready = {"nano-emoji", "nano-emoji-1-epoch", "nano"}
    for _ in range(10):
        assert set(choose_models(lab, [ANY_MODEL, ANY_MODEL, ANY_MODEL], shuffled=True)) == ready
        assert choose_models(lab, [NOT_PUBLISHED, ANY_MODEL], shuffled=False)[0] == NOT_PUBLISHED
    firsts = {choose_models(lab, ["nano", "nano-emoji"], shuffled=True)[0] for _ in range(50)}
    assert firsts == {"nano", "nano-emoji"}
    with pytest.raises(LabError, match="Nano is chosen twice"):
        choose_models(lab, ["nano", "nano"], shuffled=False)
    with pytest.raises(LabError, match="Only 3 more models are ready, not 4"):
        choose_models(lab, [ANY_MODEL] * 4, shuffled=True)


def test_differences_are_marked_and_escaped():
    assert mark_differences(["🇸🇪 is the flag of Sweden.", "🇸🇪 is the flag of <b>Suriname</b>."]) == [
        "🇸🇪 is the flag of <mark>Sweden</mark>.",
        "🇸🇪 is the flag of <mark>&lt;b&gt;Suriname&lt;/b&gt;</mark>.",
    ]
    assert mark_differences(["one two  three", "one two  three"]) == ["one two  three"] * 2
    assert mark_differences(["a red panda", "a panda", "no red fox"]) == [
        "a red panda", "a panda", "<mark>no</mark> red <mark>fox</mark>",
    ]  # fmt: skip
    assert mark_differences(["<i>" + "word " * 700, "other"])[1] == "other"  # too long to compare: escaped, unmarked


def test_nothing_identifies_the_models_before_the_vote(tab):
    *before, last = rounds(tab, "What does 🐼 mean?", ANY_MODEL, ANY_MODEL, "", blind=True)
    identifying = re.compile(r"nano|epoch|tokens|loading|thinking|in memory", re.IGNORECASE)
    for step in [*before, last]:
        assert not identifying.search(sent(step, tab)), sent(step, tab)
    this = last[tab.round]
    after = tab.vote("a", this, gr.Request(session_hash="visit"))
    names = [tab.model_name(answer.model) for answer in this.answers]
    assert all(name in sent(after, tab) for name in names) and "tokens" in sent(after, tab)
    assert f"You preferred {names[0]}." in after[tab.summary]
    assert "1 blind vote." in after[tab.ranking] and names[0] in after[tab.ranking]
    again = tab.vote("b", this, gr.Request(session_hash="visit"))
    assert "already has a vote" in again[tab.box.notice]
    assert len(tab.votes.all()) == 1


def test_a_new_question_replaces_the_running_one(tab):
    request = gr.Request(session_hash="visit")
    older = tab.ask(request, "What does 🐼 mean?", False, "nano-emoji", "nano", "", "", 0.0, 0.9, 64, None)
    assert "🐼" in sent(next(older), tab)
    assert "Sweden" in sent(rounds(tab, SWEDEN, "nano-emoji", "nano", "", blind=False)[-1], tab)
    assert not list(older)


def test_a_blind_model_that_fails_is_named_at_the_end_and_there_is_no_vote(tab):
    *before, last = rounds(tab, SWEDEN, "nano-emoji", NOT_PUBLISHED, "", blind=True)
    assert not any("published" in sent(step, tab) or "FineTome" in sent(step, tab) for step in before)
    assert "is not published yet" in sent(last, tab) and "Sweden" in sent(last, tab)
    assert last[tab.round].battle is None
    assert "ask another question" in tab.vote("a", last[tab.round], gr.Request(session_hash="visit"))[tab.box.notice]


def test_an_unusable_votes_file_does_not_break_the_answers(tab, tmp_path):
    tab.votes = Votes(tmp_path)
    last = rounds(tab, SWEDEN, "nano-emoji", "nano", "", blind=True)[-1]
    assert "set VOTES to a file" in last[tab.box.notice] and "Sweden" in sent(last, tab)
    assert "set VOTES to a file" in tab.ranking_html()


@pytest.fixture(scope="module")
def page(address, request):
    """One page for all tests of the tab. Its microphone plays the question."""
    with open_page(address, microphone=request.getfixturevalue("question_aloud")) as page:
        page.get_by_role("tab", name="Compare").click()
        yield page


def ask(page, text: str, refused: str = "") -> None:
    """Ask a question, which is `refused` in these words, if they are given."""
    enter_question(page, "#compare-question", text, refused, "#compare-notice")


def answers(page, *expected: str) -> None:
    """Wait until these answers are complete, from left to right."""
    for letter, text in zip(LETTERS, expected, strict=False):
        page.locator(f"#answer-{letter} .text", has_text=text).wait_for()
    page.locator("#compare-stop").wait_for(state="hidden")


@needs_browser
def test_both_models_answer_and_differences_are_underlined(page):
    page.get_by_role("button", name="Which emoji shows a panda?").click()
    answers(page, "🐼", "🐼")
    ask(page, SWEDEN)
    answers(page, "Sweden", "I don't know that one yet.")
    expect(page.locator("#answers h3")).to_have_text(["Nano · Emoji", "Nano"])
    expect(page.locator("#answers .figures", has_text="tokens")).to_have_count(2)
    mark = page.locator("#answer-a mark")
    assert "Sweden" in mark.inner_text()
    assert mark.evaluate("mark => getComputedStyle(mark).textDecorationLine") == "underline"
    ask(page, "What does 🤞 mean?")
    answers(page, "crossed fingers", "crossed fingers")
    page.locator("#summary", has_text="The answers are the same.").wait_for()


@needs_browser
def test_both_models_answer_a_spoken_question(page):
    for _ in range(3):  # a recording on a busy machine may have gaps: speak again
        ask(page, "What does 🤞 mean?")
        answers(page, "crossed fingers", "crossed fingers")
        speak(page, "compare-voice")
        page.locator("#asked", has_not_text="🤞").wait_for()
        page.locator("#compare-stop").wait_for(state="hidden")
        if "find the emoji for a panda" in page.locator("#asked").inner_text():
            break
    answers(page, "🐼", "🐼")


@needs_browser
def test_a_failed_model_shows_its_error_and_a_bad_question_keeps_the_answers(page):
    choose_in(page, "Model 3", "Llama 3.2 1B · FineTome — not published")
    ask(page, SWEDEN)
    answers(page, "Sweden", "I don't know that one yet.")
    page.locator("#answer-c .failed", has_text="python -m training run finetome-1b").wait_for()
    expect(page.locator("#answers mark")).to_have_count(2)
    ask(page, "  ", "The question is empty")
    assert "Sweden" in page.locator("#answer-a").inner_text()
    choose_in(page, "Model 3", "no third model")


@needs_browser
def test_stop_ends_all_answers(page):
    choose_in(page, "Model 2", "Babble — ")
    stop_a_long_answer(page, ask, "#compare-stop", "#answer-b .figures")
    choose_in(page, "Model 2", "Nano — ")


@needs_browser
def test_a_blind_vote_shows_the_names_and_the_ranking_is_there_after_a_reload(page, address, votes_file):
    page.set_viewport_size({"width": 360, "height": 740})
    if page.locator("#right.open").count():
        page.mouse.click(5, 300)  # beside the settings, which cover the page
    votes = Votes(votes_file)
    votes.vote(votes.open_battle("?", ["nano", "nano-emoji"], drawn=True).id, "b")
    stored, ranked = len(votes.all()), sum(votes.tally().values())
    page.get_by_label("Blind").check()
    choose_in(page, "Model 1", "Nano · Emoji — ")
    choose_in(page, "Model 2", "Nano — ")
    ask(page, "What does 🇸🇪 mean?")
    page.locator("#summary", has_text="The names appear after you vote").wait_for()
    assert "Nano" not in page.locator("#answers").inner_text()
    better = "A" if "Sweden" in page.locator("#answer-a").inner_text() else "B"
    page.get_by_role("button", name=f"{better} is better").click()
    page.locator("#summary", has_text="You preferred Nano · Emoji. Your vote is saved.").wait_for()
    page.locator("#compare-notice", has_text="does not count in the ranking").wait_for()  # the visitor named the models
    assert len(votes.all()) == stored + 1
    assert "🇸🇪 is the flag of Sweden." in votes.all()[-1].battle.answers
    page.locator("#answers h3", has_text=f"{better}: Nano · Emoji ✓").wait_for()
    boxes = [page.locator(f"#answer-{letter}").bounding_box() for letter in "ab"]
    assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]  # the columns stack
    ask(page, "What does 🐼 mean?")  # a battle that nobody votes on
    page.locator("#summary", has_text="The names appear after you vote").wait_for()
    page.goto(address)
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Ranking").click()
    page.locator("#ranking tr", has_text="Nano · Emoji").first.wait_for()
    assert f"Based on {ranked} blind vote" in page.locator("#ranking").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_no_message_to_the_browser_identifies_the_models(address):
    http = httpx2.Client(base_url=f"{address}gradio_api", timeout=300)
    config = http.get(f"{address}config").json()
    send = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "compare-send")
    event = next(d for d in config["dependencies"] if [send, "click"] in d["targets"])
    shown = {component["id"]: component["props"].get("value") for component in config["components"]}
    data = ["What does 🤞 mean?", True, *(shown[i] for i in event["inputs"][2:])]
    http.post("/queue/join", json={"data": data, "fn_index": event["id"], "session_hash": "wire"}).raise_for_status()
    lines = []
    with http.stream("GET", "/queue/data", params={"session_hash": "wire"}) as answer:
        for line in answer.iter_lines():
            lines.append(line)
            if "process_completed" in line:
                break
    assert "The names appear after you vote" in "".join(lines)
    assert not [line for line in lines if re.search("nano|tokens/s|loading|thinking", line, re.IGNORECASE)]


def test_programs_compare_and_vote(address, votes_file):
    client = Client(address, verbose=False)
    compared = client.predict(SWEDEN, ["nano-emoji", NOT_PUBLISHED], temperature=0, api_name="/compare")
    assert compared[0] == {"model": "nano-emoji", "answer": "🇸🇪 is the flag of Sweden.", "error": None}
    assert "not published" in compared[1]["error"]
    pair = ["nano", "nano-emoji"]
    battle = client.predict("What does 🤞 mean?", pair, api_name="/battle")
    assert set(battle) == {"battle", "answers"} and "nano" not in str(battle)
    vote = client.predict(battle["battle"], "b", api_name="/vote")
    assert vote["winner"] == vote["models"]["b"] != vote["models"]["a"]
    stored = Votes(votes_file).battle(battle["battle"])
    assert dict(zip("ab", stored.answers, strict=True)) == battle["answers"]
    assert not vote["counted"] and "not drawn at random" in vote["note"]
    for arguments, sentence in (
        ((battle["battle"], "a"), "already has a vote"),
        (("'; DROP TABLE votes; --", "a"), "There is no battle"),
        ((client.predict("What does 🤞 mean?", pair, api_name="/battle")["battle"], "z"), "is not a valid vote"),
    ):
        with pytest.raises(Exception, match=sentence):
            client.predict(*arguments, api_name="/vote")
    with pytest.raises(Exception, match="There is no model “'; DROP"):
        client.predict(SWEDEN, ["'; DROP TABLE votes; --", "'; DROP TABLE votes; --"], api_name="/compare")
    with pytest.raises(Exception, match="choose two or three"):
        client.predict(SWEDEN, ["*"], api_name="/battle")


def test_30_programs_vote_concurrently(address, votes_file):
    client, votes = Client(address, verbose=False), Votes(votes_file)
    before = client.predict(api_name="/ranking")["votes"]
    battles = [votes.open_battle("?", ["nano", "nano-emoji"], drawn=True).id for _ in range(30)]

    def vote(battle: str) -> str:  # plain HTTP: 30 threads in one gradio_client share a stream, and it loses events
        with httpx2.Client(base_url=f"{address}gradio_api/call/vote", timeout=300) as program:
            event = program.post("", json={"data": [battle, "b"]}).json()["event_id"]
            return program.get(f"/{event}").text

    with ThreadPoolExecutor(30) as pool:
        results = list(pool.map(vote, battles))
    assert all("event: complete" in result and '"winner": "nano-emoji"' in result for result in results), results[0]
    ranking = client.predict(api_name="/ranking")
    assert ranking["votes"] == before + 30
    assert ranking["models"][0]["model"] == "nano-emoji" and ranking["models"][0]["low"] > 0.5
