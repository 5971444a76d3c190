"""Make `page.png` and `page-phone.png` from a running page: `python -m docs.screenshot http://127.0.0.1:7860`

It needs Chromium, see `scripts/browser.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from scripts.browser import find_browser

QUESTIONS = ("What does 🇸🇪 mean?", "Which emoji shows a panda?")
SIZES = {"page.png": (1200, 800), "page-phone.png": (390, 844)}
SETTLED_MS = 1500  # after which nothing on the page moves


def main(address: str, folder: Path) -> None:
    """Ask two questions in a wide and in a narrow window, and save both as pictures in `folder`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        for name, (width, height) in SIZES.items():
            take(browser, address, width, height, folder / name)
        browser.close()


def take(browser: Browser, address: str, width: int, height: int, path: Path) -> None:
    """Ask the questions in a window of so many pixels and save it."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    page.locator("#question textarea").wait_for()
    page.wait_for_timeout(SETTLED_MS)
    for number, question in enumerate(QUESTIONS):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
        page.locator("#chat .figures", has_text="tokens/s").nth(number).wait_for()
    page.wait_for_timeout(SETTLED_MS)
    page.screenshot(path=path)
    page.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(__file__).parent)
