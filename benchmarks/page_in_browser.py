"""How soon can a visitor use the page after its first paint, and what does the page cost a token of an answer?

In Chromium on the same machine. The cost: what 300 more tokens take on the page and from the engine alone, in turns,
and what of it the page's process computes beside what each program computes that reads the engine's answer. The rest is
the browser, which visitors have on their own machines. A model in the nano's shape with random weights answers, because
the nano's own answers end after a dozen tokens.
"""

from __future__ import annotations

import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

import psutil

from benchmarks.report import Figure, Unavailable, timed
from benchmarks.running_app import RunningApp
from benchmarks.timed_models import ask, write_base
from inference.engines import ModelFiles, load_engine
from scripts.browser import find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NANO_SHAPE = {
    "vocab_size": 3072, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip
SHORT, LONG = 100, 400  # tokens of an answer
QUESTION = "What does this emoji mean?"
# Notes when the question box appears.
WATCH = """(() => {
  const look = () => {
    if (document.querySelector("#question textarea")?.offsetParent) window.usable = performance.now();
    else requestAnimationFrame(look);
  };
  look();
})()"""
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def measure(quick: bool) -> list[Figure]:
    """Measure nine times, or with `quick` once. Raises Unavailable if there is no browser."""
    chromium = find_browser()
    if chromium is None or find_spec("playwright") is None:
        raise Unavailable("It needs Playwright and Chromium: run python -m scripts.browser.")
    from playwright.sync_api import sync_playwright

    rounds = 1 if quick else 9
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        model = write_model(Path(folder))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        with RunningApp(CATALOG=f"{folder}/catalog.yaml", QUESTIONS_PER_MINUTE="0") as app:
            starts = [seconds_to_use(browser, app.address) for _ in range(rounds)]
            costs = token_costs(browser, app, model, rounds)
        browser.close()
    paint, usable = (median(start[i] for start in starts) for i in (0, 1))
    page, computed, engine = (1e3 * mean(cost[i] for cost in costs) for i in (0, 1, 2))
    return [
        Figure(f"first paint after the address is opened, s (median of {rounds})", f"{paint:.2f}"),
        Figure("from the first paint to the question box, s", f"{usable:.2f}", "≤ 2"),
        Figure("a token in Chromium on the same cores, from the engine alone, ms", f"{page:.2f}, {engine:.2f}"),
        Figure("of it the page's process computes, ms", f"{computed:.2f}"),
        Figure("the same as a share of the engine's time", f"{computed / engine:.1%}", "≤ 10 %"),
    ]


def write_model(folder: Path) -> Path:
    """Write the model and a catalog with it alone. Returns its GGUF file."""
    from training.export.llamacpp.convert import run_converter

    base, gguf = write_base(folder / "base", **NANO_SHAPE), folder / "model.gguf"
    run_converter("convert_hf_to_gguf.py", str(base), "--outtype", "q8_0", "--outfile", str(gguf))
    entry = "{id: random, name: Random, summary: Random weights., folder: ., file: model.gguf}"
    (folder / "catalog.yaml").write_text(f"models:\n  - {entry}\n", encoding="utf-8")
    return gguf


def seconds_to_use(browser: Browser, address: str) -> tuple[float, float]:
    """Open the page as a new visitor. Returns the time to the first paint, and from there to the question box."""
    page = browser.new_page()
    page.add_init_script(WATCH)
    page.goto(address)
    page.wait_for_function(f"window.usable && {FIRST_PAINT}")
    paint, usable = page.evaluate(f"[{FIRST_PAINT}, window.usable]")
    page.close()
    return paint / 1e3, max(0.0, usable - paint) / 1e3


def token_costs(browser: Browser, app: RunningApp, model: Path, rounds: int) -> list[tuple[float, ...]]:
    """Seconds a token on the page, in the page's process (of CPU time), and from the engine alone, in turns."""
    engine, page = load_engine("llamacpp"), browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(app.address)
    page.get_by_role("button", name="Settings", exact=True).click()
    process = psutil.Process(app.process.pid)

    def seconds(tokens: int) -> tuple[float, float, float]:
        before = process.cpu_times()
        on_page = seconds_on_page(page, tokens)
        after = process.cpu_times()
        reading = time.process_time()
        with timed() as watch:
            ask(engine, ModelFiles(model), QUESTION, tokens)
        reading = time.process_time() - reading
        return on_page, after.user + after.system - before.user - before.system - reading, watch.seconds

    seconds(SHORT)  # loads the model
    turns = [(seconds(LONG), seconds(SHORT)) for _ in range(rounds)]
    engine.close()
    page.close()
    more = LONG - SHORT
    return [tuple((a - b) / more for a, b in zip(long, short, strict=True)) for long, short in turns]


def seconds_on_page(page: Page, tokens: int) -> float:
    """Ask in a new conversation. Returns the time from Enter to the line below the complete answer."""
    page.locator("#new").dispatch_event("click")
    page.locator("#chat .message").first.wait_for(state="detached")
    for label, value in (("Max tokens", tokens), ("Temperature", 0)):
        page.get_by_label(f"number input for {label}").fill(str(value))
        page.keyboard.press("Tab")
    page.locator("#question textarea").fill(QUESTION)
    with timed() as watch:
        page.keyboard.press("Enter")
        page.locator("#chat .figures", has_text=f"{tokens} tokens").wait_for()
    return watch.seconds
