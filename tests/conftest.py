"""What tests share: embedded models, models with random weights, recordings, the commands, the app and a browser."""

from __future__ import annotations

import ast
import gc
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import wave
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share the cores: more threads only wait for each other

from fleet_run import NOT_INSTALLED, START_SECONDS, Fleet, get, started_fleet, wait_for
from huggingface_hub import constants
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from processes import fork_converters, run_forked

from inference.engines import Message, ModelFiles, Sampling
from inference.settings import PROJECT, cache_folder
from inference.speech import SAMPLE_RATE, decode
from local_hub import LocalHub
from scripts.browser import find_browser

NANO = PROJECT / "adapters" / "nano"
EMOJI = PROJECT / "adapters" / "nano-emoji"
ONE_EPOCH = PROJECT / "adapters" / "nano-emoji-1-epoch"
RECORDINGS = PROJECT / "tests" / "recordings"
CHROMIUM = find_browser()
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: `make test` installs it if it can")
PATIENCE = 120_000  # ms that a browser waits for what must appear: a machine may be slow
GREEDY = Sampling(temperature=0, max_tokens=64)
fork_converters()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test fails: there every tool that a test needs must be installed, except vLLM. A failure shows
    what the browser showed."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if report.failed and isinstance(page, Page):
        report.sections.append(("the page", state_of(page)))
    allowed = hasattr(report, "wasxfail") or NOT_INSTALLED in str(report.longrepr)
    if os.environ.get("CI") and report.skipped and not allowed:
        report.outcome, report.longrepr = "failed", f"Skipped, which is a failure in CI: {report.longrepr}"
    return report


@pytest.fixture
def in_float32(monkeypatch):
    """Computes in float32 on the CPU, so that two ways can be compared closely."""
    import torch

    from training.finetune import base_model
    from training.finetune.libraries import trl_options

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for module in (base_model, trl_options):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)


@pytest.fixture(scope="session")
def engine():
    """A llama.cpp engine with one thread, because two test processes share two cores."""
    from inference.engines.llamacpp.engine import Engine

    engine = Engine(threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def nano() -> ModelFiles:
    """The base as shipped."""
    return ModelFiles(NANO / "nano-Q8_0.gguf")


@pytest.fixture(scope="session")
def emoji() -> ModelFiles:
    """The base with the emoji adapter."""
    return ModelFiles(NANO / "nano-Q8_0.gguf", EMOJI / "adapter-f16.gguf")


@pytest.fixture(scope="session")
def half_precision_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as a GGUF file in f16, written by llama.cpp's converter."""
    from training.export.llamacpp.convert import run_converter

    out = tmp_path_factory.mktemp("f16") / "nano-f16.gguf"
    run_converter("convert_hf_to_gguf.py", str(NANO), "--outtype", "f16", "--outfile", str(out))
    return out


def ask(engine, files: ModelFiles, *texts: str, sampling: Sampling = GREEDY, cancelled=lambda: False):
    """Return the answer to a conversation and its figures; `texts` alternate between user and assistant."""
    messages = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    chunks = list(engine.stream(files, messages, sampling, cancelled))
    return "".join(chunk.text for chunk in chunks), chunks[-1].figures


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m …` from the project as a user would. Training starts as a fork."""
    if arguments[0] == "training":
        return run_forked("-m", *arguments, **environment)
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two vLLM servers with the nano base and its adapters, the router and the page."""
    with pytest.MonkeyPatch.context() as patch, started_fleet(tmp_path_factory.mktemp("fleet"), patch) as fleet:
        wait_for(lambda: all(map(fleet.is_healthy, (1, 2))) and get(fleet.page), START_SECONDS)
        yield fleet


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A local Hub that this process uses in place of the real one."""
    with pytest.MonkeyPatch.context() as patch, LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file. CPython 3.11 can't parse while a finalizer's traceback is printed (gh-106905),
    so nothing is collected meanwhile."""
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


@contextmanager
def running_app(log: Path, *arguments: str, folder: Path = PROJECT, **environment: str) -> Iterator[str]:
    """Start `python app.py`, or Python with `arguments`, on a free port and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, *(arguments or ["app.py"])],
            cwd=folder, env={**os.environ, **environment, "PORT": str(port)}, stdout=lines, stderr=lines,
        )  # fmt: skip
    try:
        for _ in range(3000):
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(300)


def own_trainings(folder: Path) -> dict[str, str]:
    """The environment of an app whose trainings are in `folder`. What was downloaded and converted is shared."""
    own = folder / "cache" / cache_folder().name
    own.mkdir(parents=True)
    for path in cache_folder().iterdir() if cache_folder().is_dir() else ():
        if path.name.startswith(("bases", "conver", "speech")):
            (own / path.name).symlink_to(path)
    return {"XDG_CACHE_HOME": str(own.parent)}


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Assert exit code 2 and a message that has `words` and no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A copy of the shipped emoji run, exported, with a parity report."""
    folder = Path(shutil.copytree(EMOJI, tmp_path_factory.mktemp("run") / "nano-emoji"))
    done = command("training", "export", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 5  # the adapter on two bases, two quantizations, and what these are made of
    return folder


def gguf_header(tensor: str = "", **values: str | float | list[str]) -> bytes:
    """The start of a GGUF file with these keys, whose dots are written as two underscores, and one tensor's name."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def typed(value: str | float | list[str]) -> bytes:
        if isinstance(value, list):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        return struct.pack("<I", 8) + text(value) if isinstance(value, str) else struct.pack("<If", 6, value)

    keys = b"".join(text(key.replace("__", ".")) + typed(value) for key, value in values.items())
    return b"GGUF" + struct.pack("<IQQ", 3, bool(tensor), len(values)) + keys + (text(tensor) if tensor else b"")


def write_random_model(folder: Path, **shape: int) -> None:
    """Write a model with random weights, whose answers never end, to `folder`, and as `model.gguf` (f16) in it."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from training.export.llamacpp.convert import run_converter

    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **shape,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[[*tokenizer.added_tokens_decoder]] = 0  # so that no end token has the highest score
    model.save_pretrained(folder)
    run_converter("convert_hf_to_gguf.py", str(folder), "--outtype", "f16", "--outfile", str(folder / "model.gguf"))


@pytest.fixture(scope="session")
def catalog_with_a_slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog with one more entry, "Babble": random weights, slow enough to stop its endless answer."""
    folder = Path(shutil.copytree(PROJECT / "adapters", tmp_path_factory.mktemp("catalog") / "adapters"))
    write_random_model(
        folder / "babble", hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=8,
    )  # fmt: skip
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        catalog.write("  - {id: babble, name: Babble, summary: Random weights., folder: babble, file: model.gguf}\n")
    return folder / "catalog.yaml"


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `base` of random weights, whose answers never end, and two copies of an adapter for it,
    `first` and `second`, each also as `adapter.gguf`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from training.export.llamacpp.convert import run_converter

    folder = tmp_path_factory.mktemp("endless")
    torch.manual_seed(0)
    write_random_model(
        folder / "base", hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "base"),
        LoraConfig(r=24, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(folder / "first")
    arguments = ["--base", str(folder / "base"), "--outfile", str(folder / "first" / "adapter.gguf")]
    run_converter("convert_lora_to_gguf.py", str(folder / "first"), *arguments)
    shutil.copytree(folder / "first", folder / "second")
    return folder


@pytest.fixture(scope="session")
def votes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app under test keeps its votes."""
    return tmp_path_factory.mktemp("votes") / "votes.sqlite"


@pytest.fixture(scope="session")
def address(tmp_path_factory, catalog_with_a_slow_model, votes_file) -> Iterator[str]:
    """The address of one app for all tests of the page. Its Hub is unreachable."""
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HUB_NAMESPACE": "", "VOTES": str(votes_file)}
    environment["VOTES_REPO"] = "me/votes"  # the Hub is unreachable: the page must work all the same
    environment["CATALOG"] = str(catalog_with_a_slow_model)
    environment |= {"QUESTIONS_PER_MINUTE": "0", "VOTES_PER_HOUR": "0"}  # all tests come from one address
    with running_app(tmp_path_factory.mktemp("app") / "log", **environment) as url:
        yield url


@contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Browser]:
    """Start a browser. The WAV file is its microphone."""
    expect.set_options(timeout=PATIENCE)
    flags = list(FLAGS)
    if microphone:
        flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        flags += [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=flags, timeout=PATIENCE) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a module. While it runs, this thread cannot start another."""
    with chromium() as browser:
        yield browser


def state_of(page: Page) -> str:
    """What a page shows, and the errors in its console."""
    try:
        errors = [message.text for message in page.console_messages() if message.type in ("error", "warning")]
        return "\n".join([page.url, page.locator("body").inner_text(timeout=5_000), *errors])
    except PlaywrightError as error:
        return str(error)


@contextmanager
def visit(
    browser: Browser, address: str, width: int = 900, height: int = 1000, query: str = "", others_allowed: bool = False
) -> Iterator[Page]:
    """Open the page as a new visitor, in a window of so many pixels. It must not request anything from another host
    unless `others_allowed`."""
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        outside = []
        page.on("request", lambda request: outside.append(request.url))
        page.goto(address + query)
        page.locator("#question textarea").wait_for()
        if width >= 1100:
            page.locator("#left.open").wait_for()
        try:
            yield page
        except Exception:
            print(state_of(page))
            raise
    assert others_allowed or not [url for url in outside if url.startswith("http") and not url.startswith(address)]


@contextmanager
def open_page(address: str, microphone: Path | None = None) -> Iterator[Page]:
    """Open the page in a browser of its own."""
    with chromium(microphone) as browser, visit(browser, address) as page:
        yield page


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """Write `samples`, mono in [-1, 1] at `SAMPLE_RATE`, as 16-bit WAV."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).astype(np.int16).tobytes())
    return path


@pytest.fixture(scope="session")
def question_aloud(tmp_path_factory) -> Path:
    """“Could you find the emoji for a panda?” as a WAV, the only format that Chromium plays as its microphone."""
    return play(tmp_path_factory.mktemp("voice") / "question.wav", "find_the_emoji.flac")


def play(microphone: Path, recording: str) -> Path:
    """Write a recording as the WAV file that a browser opens at each use of its microphone."""
    return write_wav(microphone, decode(RECORDINGS / recording).samples)


def speak(page, recorder: str) -> None:
    """Record the question and stop."""
    page.locator(f"#{recorder}").get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(4000)
    page.locator(f"#{recorder}").get_by_role("button", name="Stop").first.click()


def enter_question(page, box: str, text: str, refused: str = "", notice: str = "#notice") -> None:
    """Type a question into a box and press Enter until the page takes it, which empties the box: the page ignores the
    key for the moment between the end of an answer on the screen and the end of its event. A question that is `refused`
    in these words stays in the box."""
    field = page.locator(f"{box} textarea")
    field.fill(text)
    for _ in range(30):
        page.keyboard.press("Enter")
        with suppress(PlaywrightTimeout, AssertionError):
            if refused:
                return page.locator(notice, has_text=refused).wait_for(timeout=4_000)
            return expect(field).not_to_have_value(text, timeout=4_000)
    raise AssertionError(f"the page did not take {text[:40]!r}")


def choose_in(page, label: str, name: str) -> None:
    """Choose an entry, by how its text begins, from the list of models with that label. Tries again until the list
    shows it, because a refresh of the choices closes the list, and a click on a list that is still opening can hit the
    entry beside it. *Add* and *Refresh* are never shown as chosen."""
    chosen, entry = page.get_by_label(label, exact=True), page.get_by_role("option", name=name).first
    for _ in range(10):
        chosen.click()
        with suppress(PlaywrightTimeout, AssertionError):
            entry.click(timeout=10_000)
            model, dash, _ = name.partition(" — ")
            if dash:
                expect(chosen).to_have_value(re.compile(re.escape(model + dash)), timeout=4_000)
            return
        if page.get_by_role("option").count():
            page.keyboard.press("Escape")
    chosen.click()
    raise AssertionError(f"there is no {name} among {page.get_by_role('option').all_inner_texts()}")


def open_settings(page) -> None:
    """Open the drawer at the right."""
    page.get_by_role("button", name="Settings", exact=True).click()
    page.locator("#right.open").wait_for()


def stop_a_long_answer(page, ask, button: str, figures: str) -> None:
    """Ask Babble with `ask(page, text)`, press Escape, and see below the answer that it was stopped."""
    open_settings(page)
    page.get_by_label("number input for Max tokens").fill("2048")
    page.keyboard.press("Tab")
    ask(page, "Tell me about 🐙 and 🐼")
    page.locator(button).wait_for()
    page.keyboard.press("Escape")
    page.locator(button).wait_for(state="hidden")
    page.locator(figures, has_text="stopped").wait_for()
