"""The page's frame in Chromium: what is in view at each size, scrolling, keyboard, screen readers, and pictures."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import needs_browser, open_page, open_settings
from PIL import Image

from docs.screenshot import SIZES as PICTURES
from docs.screenshot import take as take_picture
from inference.settings import PROJECT

pytestmark = [pytest.mark.xdist_group("page"), needs_browser]
SIZES = [(1440, 900), (1200, 800), (390, 844), (360, 640)]
LONG = "Tell me about 🐙 and 🐼"


@pytest.fixture(scope="module")
def browser(address):
    """One browser for all tests."""
    with open_page(address) as page:
        yield page.context.browser


@pytest.fixture
def page(browser, address):
    """A page of a new visitor."""
    context = browser.new_context()
    page = context.new_page()
    open_at(page, address, 1200, 800)
    yield page
    context.close()


def open_at(page, address: str, width: int, height: int) -> None:
    """Open the address in a window of so many pixels, and wait until nothing moves."""
    page.set_viewport_size({"width": width, "height": height})
    page.goto(address)
    page.locator("#question textarea").wait_for()
    if width >= 1100:
        page.locator("#left.open").wait_for()
    settle(page)


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


def assert_in_view(page, selectors: list[str], width: int, height: int) -> None:
    """Assert that all of each element is inside the window."""
    for selector in selectors:
        box = page.locator(selector).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= width, (selector, box)
        assert box["y"] >= 0 and box["y"] + box["height"] <= height, (selector, box)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_composer_is_in_view_before_and_after_an_answer(page, address, width, height):
    open_at(page, address, width, height)
    assert_in_view(page, [*controls(), "#model input", "#tune", "#chat .example >> nth=0"], width, height)
    page.locator("#chat .example").first.click()
    page.locator("#chat .figures", has_text="tokens").wait_for()
    assert_in_view(page, controls(), width, height)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-question").wait_for()
    settle(page)
    assert_in_view(page, controls("compare-"), width, height)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.scrollHeight") <= height


def test_the_page_fits_a_frame_of_another_page_and_200_percent_zoom(page, address):
    page.route("**/frame-of-the-hub", lambda route: route.fulfill(
        content_type="text/html", body=f'<iframe src="{address}" style="width: 1100px; height: 700px"></iframe>'
    ))  # fmt: skip
    page.goto(f"{address}frame-of-the-hub")
    frame = page.frame_locator("iframe")
    frame.locator("#question textarea").wait_for()
    outer = page.locator("iframe").bounding_box()
    for selector in controls():
        box = frame.locator(selector).bounding_box()
        assert box and box["y"] + box["height"] <= outer["y"] + outer["height"], selector
    open_at(page, address, 600, 400)  # 1200 × 800 at 200 %
    assert_in_view(page, controls(), 600, 400)


def test_one_can_scroll_up_and_type_while_an_answer_grows(page):
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="Babble — ").click()
    open_settings(page)
    page.get_by_label("number input for Max tokens").fill("2048")
    page.keyboard.press("Tab")
    page.locator("#question textarea").fill(LONG)
    page.keyboard.press("Enter")
    grown = "document.querySelector('#chat .bubble-wrap').scrollHeight"
    page.wait_for_function(f"{grown} > 1200", timeout=60_000)
    place = page.locator("#chat .bubble-wrap")
    assert place.evaluate("e => e.scrollTop") > -2  # it follows the end
    place.evaluate("e => e.scrollTo(0, -10000)")
    question = page.locator("#chat .user.message").bounding_box()
    height = page.evaluate(grown)
    page.wait_for_function(f"{grown} > {height} + 50", timeout=60_000)
    assert page.locator("#chat .user.message").bounding_box() == question
    page.get_by_role("button", name="Scroll to the end").click()
    page.wait_for_function("document.querySelector('#chat .bubble-wrap').scrollTop > -2")
    page.locator("#to-end").wait_for(state="hidden")
    page.locator("#question textarea").fill("The next question")
    page.keyboard.press("Escape")
    page.locator("#chat .figures", has_text="stopped").wait_for()
    assert page.locator("#question textarea").input_value() == "The next question"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, address, theme):
    page.goto(f"{address}?__theme={theme}")
    page.locator("#chat .example").first.click()
    page.locator("#chat .figures", has_text="tokens").wait_for()
    open_settings(page)
    found = {}
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
    page.locator("#chat .figures", has_text="tokens").wait_for()
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert page.locator("#chat [role=log][aria-live=polite]").count() == 1
    open_settings(page)
    page.wait_for_function("document.querySelector('#right').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.id === 'tune'")


def test_a_microphone_that_is_blocked_is_explained(page):
    page.locator("#voice .record-button").click()
    page.locator("#transcript .problem", has_text="attach a recording").wait_for()


def test_models_are_grouped_searched_and_added_in_the_list(page):
    box = page.get_by_label("Model", exact=True)
    box.click()
    names = [name.strip("\u200b\u2060✓ \n") for name in page.get_by_role("option").all_inner_texts()]
    assert names[0].startswith("Nano — ") and names[1].startswith("Nano · Emoji — ")
    assert names[-2:] == ["+ Add a model from the Hub…", "⟳ Refresh this list"]
    page.keyboard.type("3B")
    page.get_by_role("option").nth(2).wait_for(state="detached")
    assert all("3B" in name for name in page.get_by_role("option").all_inner_texts())
    box.click()
    page.keyboard.type("Add")
    page.get_by_role("option").nth(1).wait_for(state="detached")
    page.get_by_role("option").first.click()
    page.get_by_role("textbox", name="Add a model from the Hub").wait_for()
    page.wait_for_function("document.querySelector('#model input').value.includes('Nano · Emoji — ')")


def test_the_pictures_of_the_documentation(browser, address, tmp_path):
    for name, (width, height) in PICTURES.items():
        take_picture(browser, address, width, height, tmp_path / name)
        assert Image.open(tmp_path / name).size == Image.open(PROJECT / "docs" / name).size == (width, height)
