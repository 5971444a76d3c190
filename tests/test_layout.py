"""The page's frame in Chromium: what is in view at each size, scrolling, keyboard, screen readers, and pictures."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import needs_browser, open_settings, visit
from PIL import Image
from playwright.sync_api import expect
from test_page import ask, choose, wait_for_answer

from docs.screenshot import SIZES as PICTURES
from docs.screenshot import take as take_picture
from inference.settings import PROJECT

pytestmark = [pytest.mark.xdist_group("page"), needs_browser]
SIZES = [(1440, 900), (1200, 800), (390, 844), (360, 640)]


@pytest.fixture
def page(browser, address):
    """A page of a new visitor."""
    with visit(browser, address, 1200, 800) as page:
        yield page


def settle(page) -> None:
    """Wait until all transitions have ended."""
    page.evaluate("""async () => {
      await new Promise(requestAnimationFrame);
      await new Promise(requestAnimationFrame);  // what has just changed has started its transition
      const moving = document.getAnimations().filter((each) => each instanceof CSSTransition);
      await Promise.allSettled(moving.map((each) => each.finished));
    }""")


def controls(prefix: str = "") -> list[str]:
    """What must be in view: text, microphone, attachment, send."""
    return [f"#{prefix}question textarea", f"#{prefix}voice .record-button", f"#{prefix}attach", f"#{prefix}send"]


def assert_in_view(page, selectors: list[str]) -> None:
    """Assert that all of each element comes into view."""
    for selector in selectors:
        expect(page.locator(selector)).to_be_in_viewport(ratio=0.99)  # of 1: positions are fractions of a pixel


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_composer_is_in_view_before_and_after_an_answer(browser, address, width, height):
    with visit(browser, address, width, height) as page:
        assert_in_view(page, [*controls(), "#model input", "#tune", "#chat .example >> nth=0"])
        page.locator("#chat .example").first.click()
        wait_for_answer(page, 1)
        assert_in_view(page, controls())
        page.get_by_role("tab", name="Compare").click()
        assert_in_view(page, controls("compare-"))
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.scrollHeight") <= height


def test_the_page_fits_a_frame_of_another_page_and_200_percent_zoom(browser, page, address):
    page.route("**/frame-of-the-hub", lambda route: route.fulfill(
        content_type="text/html", body=f'<iframe src="{address}" style="width: 1100px; height: 700px"></iframe>'
    ))  # fmt: skip
    page.goto(f"{address}frame-of-the-hub")
    assert_in_view(page.frame_locator("iframe"), controls())
    with visit(browser, address, 600, 400) as zoomed:  # 1200 × 800 at 200 %
        assert_in_view(zoomed, controls())


def test_one_can_scroll_up_and_type_while_an_answer_grows(page):
    page.set_viewport_size({"width": 1200, "height": 500})
    choose(page, "Babble — ")
    open_settings(page)
    page.get_by_label("number input for Max tokens").fill("2048")
    page.keyboard.press("Tab")
    ask(page, "Tell me about 🐙 and 🐼")
    grown = "document.querySelector('#chat .bubble-wrap').scrollHeight"
    page.wait_for_function(f"{grown} > 700")
    at_the_end = "document.querySelector('#chat .bubble-wrap').scrollTop > -2"
    page.wait_for_function(at_the_end)  # it follows the end
    page.locator("#chat .bubble-wrap").evaluate("e => e.scrollTo(0, -10000)")
    to_the_end = page.get_by_role("button", name="Scroll to the end")
    to_the_end.wait_for()
    question = page.locator("#chat .user.message").bounding_box()
    height = page.evaluate(grown)
    page.wait_for_function(f"{grown} > {height} + 50")
    assert page.locator("#chat .user.message").bounding_box() == question
    to_the_end.click()
    page.wait_for_function(at_the_end)
    page.locator("#to-end").wait_for(state="hidden")
    page.locator("#question textarea").fill("The next question")
    page.keyboard.press("Escape")
    page.locator("#chat .figures", has_text="stopped").wait_for()
    assert page.locator("#question textarea").input_value() == "The next question"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, address, theme):
    found = {}
    with visit(browser, address, 1200, 800, query=f"?__theme={theme}") as page:
        page.locator("#chat .example").first.click()
        wait_for_answer(page, 1)
        open_settings(page)
        for tab in ("Chat", "Compare", "Models"):
            page.get_by_role("tab", name=tab).click()
            if tab == "Models":
                page.locator(".model h3").first.wait_for()
            settle(page)
            violations = Axe().run(page).response["violations"]
            found |= {
                (tab, each["id"]): [node["html"][:150] for node in each["nodes"][:4]]
                for each in violations
                if each["impact"] in ("serious", "critical")
            }
    assert not found


def test_the_keyboard_reaches_everything_in_the_order_of_the_eye_and_keeps_its_place(page):
    page.set_viewport_size({"width": 900, "height": 700})
    page.locator("#question textarea").focus()
    names = []
    for _ in range(3):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.title || document.activeElement.innerText"))
    assert [name.strip().lower() for name in names[:2]] == ["record", "send"]
    page.locator("#question textarea").fill("What does 🐼 mean?")
    page.locator("#send").focus()
    page.keyboard.press("Enter")
    wait_for_answer(page, 1)
    page.wait_for_function("document.activeElement.tagName === 'TEXTAREA'")
    expect(page.locator("#chat [role=log][aria-live=polite]")).to_have_count(1)
    open_settings(page)
    page.wait_for_function("document.querySelector('#right').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.id === 'tune'")


def test_a_microphone_that_is_blocked_is_explained(page):
    page.locator("#voice .record-button").click()
    page.locator("#transcript .problem", has_text="attach a recording").wait_for()


def test_models_are_grouped_searched_and_added_in_the_list(page):
    page.locator("#chat .example").first.click()
    wait_for_answer(page, 1)
    box, options = page.get_by_label("Model", exact=True), page.get_by_role("option")
    expect(box).to_have_value(re.compile("Nano · Emoji — in memory"))  # the list changes no more, which would close it
    box.click()
    expect(options.last).to_contain_text("Refresh this list")
    names = [name.strip("\u200b\u2060✓ \n") for name in options.all_inner_texts()]
    assert names[0].startswith("Nano — ") and names[1].startswith("Nano · Emoji — ")
    assert names[-2:] == ["+ Add a model from the Hub…", "⟳ Refresh this list"]
    page.keyboard.type("3B")
    expect(options.filter(has_not_text="3B")).to_have_count(0)
    expect(options.filter(has_text="3B")).not_to_have_count(0)
    box.click()
    page.keyboard.type("Add")
    expect(options).to_have_count(1)
    options.click()
    page.get_by_role("textbox", name="Add a model from the Hub").wait_for()
    expect(box).to_have_value(re.compile("Nano · Emoji — "))
    open_settings(page)
    box.click()
    options.last.wait_for()
    page.keyboard.press("Escape")  # closes the list, not the settings
    expect(options).to_have_count(0)
    page.wait_for_timeout(300)
    expect(page.locator("#right.open")).to_have_count(1)


def test_the_pictures_of_the_documentation(browser, address, tmp_path, monkeypatch):
    monkeypatch.setattr("docs.screenshot.SETTLED_MS", 0)
    for name, (width, height) in PICTURES.items():
        take_picture(browser, address, width, height, tmp_path / name)
        assert Image.open(tmp_path / name).size == Image.open(PROJECT / "docs" / name).size == (width, height)
