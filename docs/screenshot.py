"""Remake `page.png` of a running app: `python docs/screenshot.py http://127.0.0.1:7860` (needs Chromium)."""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 900, "height": 1100})
    page.goto(sys.argv[1])
    for count, question in enumerate(["What does 🇸🇪 mean?", "Which emoji shows a panda?"], 1):
        page.locator("#question textarea").fill(question)
        page.keyboard.press("Enter")
        page.locator("#chat .figures", has_text="tokens/s").nth(count - 1).wait_for()
    page.wait_for_timeout(800)
    page.screenshot(path=Path(__file__).with_name("page.png"))
    browser.close()
