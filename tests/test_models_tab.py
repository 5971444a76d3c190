"""The models tab in Chromium: cards, their details, and the comparison of two models."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from conftest import enter_question, needs_browser, running_app, visit
from playwright.sync_api import expect

from inference.settings import PROJECT

pytestmark = [pytest.mark.xdist_group("page"), needs_browser]
ODD = "<img src=x onerror=alert(1)> & Co"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The app with a catalog in which one adapter has another rank, one run record is damaged, one entry is on an
    unreachable Hub, and one name is HTML."""
    folder = Path(shutil.copytree(PROJECT / "adapters", tmp_path_factory.mktemp("catalog") / "adapters"))
    path = folder / "nano-emoji-1-epoch" / "run.json"
    run_record = json.loads(path.read_text(encoding="utf-8"))
    run_record["recipe"]["lora"]["r"] = 8
    run_record["answers"][0]["after"] = ODD
    path.write_text(json.dumps(run_record), encoding="utf-8")
    shutil.copytree(folder / "nano-emoji", folder / "broken")
    (folder / "broken" / "run.json").write_text('{"recipe": ', encoding="utf-8")
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        for line in (
            "{id: broken, name: Broken, summary: s, folder: broken, file: adapter-f16.gguf, base: nano}",
            f"{{id: odd, name: '{ODD}', summary: '{ODD}', repo: me/odd, file: adapter-f16.gguf, base: nano}}",
        ):
            catalog.write(f"  - {line}\n")
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HUB_NAMESPACE": "", "CATALOG": str(folder / "catalog.yaml")}
    with running_app(tmp_path_factory.mktemp("app") / "log", **environment) as url:
        yield url


@pytest.fixture(scope="module")
def opened_page(browser, address):
    """One page for all tests."""
    with visit(browser, address) as page:
        yield page


@pytest.fixture
def page(opened_page):
    """A fresh page with the tab open."""
    opened_page.set_viewport_size({"width": 900, "height": 1000})
    opened_page.reload()
    opened_page.get_by_role("tab", name="Models").click()
    opened_page.locator(".model h3").first.wait_for()
    return opened_page


def card(page, name: str):
    """The card of that name."""
    return page.locator(".model").filter(has=page.get_by_role("heading", name=name, exact=True))


def open_card(page, name: str):
    """Open the card."""
    card(page, name).get_by_role("button", name="Loss, evaluation, recipe").click()
    return card(page, name)


def select(page, *names: str) -> None:
    """Select the cards for the comparison."""
    for name in names:
        card(page, name).get_by_label("Compare").check()


def answers_to_flags(name: str) -> dict[str, bool]:
    """Whether a shipped model's answer to each question about a flag is right."""
    evaluation = json.loads((PROJECT / "adapters" / name / "evaluation.json").read_text(encoding="utf-8"))
    answers = evaluation["suites"]["emoji"]["answers"]
    return {answer["question"]: answer["lenient"] for answer in answers if answer["group"] == "flags"}


def test_a_card_shows_how_a_model_was_made_and_opens_to_its_details(page):
    text = card(page, "Nano · Emoji").inner_text()
    assert "LoRA r 16 · alpha 64 · packing off · warm-up 60 steps · learning rate 0.003 · 4 epochs · batch 16" in text
    assert re.search(r"flags 89\s% \(86–91, n\s496\)", text) and "emoji, 5,000 examples" in text and "ready" in text
    assert "not published" in card(page, "Llama 3.2 1B · FineTome").inner_text()
    assert "808 MB to download" in card(page, "Llama 3.2 1B").inner_text()
    opened = open_card(page, "Nano · Emoji")
    opened.get_by_role("img", name=re.compile("Loss 7.62 at step 10, 0.0")).wait_for()
    assert "warmup_steps: 60" in opened.locator("pre").inner_text()
    expect(opened.locator("table").nth(1).locator("tr")).to_have_count(5)
    text = opened.inner_text()
    assert "🇰🇬 is the flag of Kyrgyzstan." in text and "1,633,320" in text and "transformers 5.23.0" in text


def test_two_selected_models_show_their_differences(page):
    differences = page.locator("#model-differences")
    select(page, "Nano · Emoji")
    differences.get_by_text("One model is selected").wait_for()
    select(page, "Nano · Emoji, 1 epoch")
    differences.locator("table").first.wait_for()
    rows = [row.inner_text().split() for row in differences.locator("table").first.locator("tr").all()]
    assert ["lora.r", "16", "8"] in rows and ["epochs", "4", "1"] in rows
    assert not [row for row in rows if row[:1] == ["packing"]]
    differences.get_by_text(re.compile(r"\d+ equal fields")).click()
    assert "packing off" in differences.inner_text()
    paired = differences.get_by_role("row").filter(has_text=re.compile(r"^flags \(496\)"))
    longer, shorter = (answers_to_flags(name) for name in ("nano-emoji", "nano-emoji-1-epoch"))
    counts = Counter((longer[question], shorter[question]) for question in longer)
    shown = [counts[True, True], counts[True, False], counts[False, True]]
    assert paired.locator("td").all_inner_texts() == [*map(str, shown), "< 0.0001"]
    select(page, "Nano")
    differences.get_by_text("3 models are selected").wait_for()


def test_a_damaged_run_record_is_reported_and_the_other_cards_stay(page):
    assert "run.json of Broken cannot be read" in card(page, "Broken").inner_text()
    open_card(page, "Broken").get_by_text("write it again as a JSON object").nth(1).wait_for()
    select(page, "Broken", "Nano · Emoji")
    page.locator("#model-differences", has_text="run.json of Broken cannot be read").wait_for()
    assert "LoRA r 16" in card(page, "Nano · Emoji").inner_text()


def test_a_model_that_is_not_available_says_why(page):
    open_card(page, "Llama 3.2 1B · FineTome").get_by_text("python -m training run finetome-1b").wait_for()
    open_card(page, "Llama 3.2 1B").get_by_text("the Hub is unreachable").wait_for()


def test_html_in_names_and_answers_is_shown_as_text(page):
    assert ODD in card(page, ODD).inner_text()
    open_card(page, "Nano · Emoji, 1 epoch").get_by_text(ODD).wait_for()
    select(page, ODD, "Nano · Emoji")
    page.locator("#model-differences", has_text=ODD).first.wait_for()
    assert page.locator("img[src=x]").count() == 0


def test_a_model_is_examined_and_a_fault_of_an_uploaded_file_is_named(page, tmp_path):
    page.get_by_role("button", name="Examine a model or an adapter").click()
    box = page.locator("#doctor")
    box.get_by_label("Model to examine").fill("nano-emoji")
    box.get_by_role("button", name="Examine", exact=True).click()
    box.get_by_text("nano-emoji: nothing is wrong").wait_for()
    assert "LoRA adapter (gguf)" in box.inner_text()
    name = tmp_path / "<b>x.gguf"
    name.write_bytes((PROJECT / "adapters" / "nano" / "nano-Q8_0.gguf").read_bytes()[:-1000])
    box.locator("input[type=file]").set_input_files(name)
    box.get_by_label("<b>x.gguf").wait_for()  # it is uploaded
    box.get_by_role("button", name="Examine", exact=True).click()
    box.get_by_text("The file is truncated").wait_for()


def test_selected_and_open_cards_stay_and_a_model_can_be_asked(page):
    open_card(page, "Nano").locator("svg.curve").wait_for()
    select(page, "Nano")
    card(page, "Nano").get_by_role("button", name="Ask this model").click()
    page.locator("#card", has_text="5.2 million parameters").wait_for()
    enter_question(page, "#question", "What does 🐙 mean?")
    page.locator("#chat .bot.message", has_text="octopus").wait_for()
    page.get_by_role("tab", name="Models").click()
    card(page, "Nano").get_by_text("in memory").wait_for()
    expect(card(page, "Nano").get_by_label("Compare")).to_be_checked()
    expect(card(page, "Nano").locator("svg.curve")).to_be_visible()


def test_the_tab_fits_the_width_of_a_phone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    open_card(page, "Nano · Emoji").locator("svg.curve").wait_for()
    select(page, "Nano · Emoji", "Nano")
    page.locator("#model-differences table").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    left = {round(page.locator(".model").nth(i).bounding_box()["x"]) for i in range(3)}
    assert len(left) == 1
    expect(page.locator("#model-differences")).to_be_in_viewport(ratio=0.99)
