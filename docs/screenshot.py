"""Make `page.png` from a running page: `python -m docs.screenshot http://127.0.0.1:7860`

It needs Chromium, see `scripts/browser.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from scripts.browser import find_browser

QUESTIONS = ("What does 🇸🇪 mean?", "Which emoji shows a panda?")


def main(address: str) -> None:
    """Ask two questions and save the page as a picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 900, "height": 1100})
        page.goto(address)
        for number, question in enumerate(QUESTIONS):
            page.locator("#question textarea").fill(question)
            page.keyboard.press("Enter")
            page.locator("#chat .figures", has_text="tokens/s").nth(number).wait_for()
        page.wait_for_timeout(800)
        page.screenshot(path=Path(__file__).with_name("page.png"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
