"""llama.cpp in a process of its own: what ends the process, the error messages, and that the next question works."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import GREEDY, NANO, ask

from inference.engines import Message, ModelFiles, Sampling, load_engine
from inference.engines.isolation.engine import IsolatedEngine
from inference.errors import LabError
from inference.settings import PROJECT

pytestmark = pytest.mark.xdist_group("engines")
QUESTION = "What does 🇸🇪 mean?"


@pytest.fixture(scope="module")
def isolated():
    """llama.cpp as users run it, on one thread."""
    engine = IsolatedEngine("llamacpp", threads=1)
    yield engine
    engine.close()


def with_layers(count: int, path: Path) -> ModelFiles:
    """The nano with another number of layers in its header. llama.cpp asserts that it is not 0."""
    data, key = bytearray((NANO / "nano-Q8_0.gguf").read_bytes()), b"llama.block_count"
    struct.pack_into("<I", data, data.index(key) + len(key) + 4, count)
    path.write_bytes(data)
    return ModelFiles(path)


def long_answer(engine: IsolatedEngine, model: ModelFiles):
    """The chunks of a long answer."""
    sampling = Sampling(0, max_tokens=2_000)
    return engine.stream(model, [Message(role="user", content="Tell me more")], sampling, lambda: False)


def seconds_to_answer(engine: IsolatedEngine, model: ModelFiles, question: str, words: str) -> float:
    """How long an answer takes, in seconds. Asserts that it has the words."""
    started = time.perf_counter()
    assert words in ask(engine, model, question)[0]
    return time.perf_counter() - started


def soon(engine: IsolatedEngine, model: ModelFiles) -> float:
    """The most seconds that the answer to QUESTION may take: from how long it takes on this machine now."""
    return 5 + 20 * seconds_to_answer(engine, model, QUESTION, "Sweden")


def test_llama_cpp_runs_in_another_process():
    assert isinstance(load_engine("llamacpp"), IsolatedEngine)


def test_a_file_that_crashes_llama_cpp_is_named_and_not_run_again(isolated, emoji, endless):
    path = endless / "base" / "deadly.gguf"  # beside the other model: one process runs both
    deadly = with_layers(0, path)
    underway = long_answer(isolated, ModelFiles(endless / "base" / "model.gguf"))
    next(chunk for chunk in underway if chunk.text)
    with pytest.raises(LabError, match=r"llamacpp crashed while it ran deadly\.gguf \(GGML_ASSERT.* failed\): choose"):
        ask(isolated, deadly, QUESTION)
    with pytest.raises(LabError, match="crashed during another answer .*: ask again"):
        list(underway)
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]
    child = isolated._child.pid
    with pytest.raises(LabError, match=r"crashed while it ran deadly\.gguf"):
        ask(isolated, deadly, QUESTION)
    assert isolated._child.pid == child and isolated.in_memory(emoji)
    # The file is another one now.
    with_layers(3, path)
    with pytest.raises(LabError, match=r"deadly\.gguf can't be loaded \(wrong number of tensors"):
        ask(isolated, deadly, QUESTION)


def test_a_killed_process_is_reported_and_the_next_question_works(isolated, emoji, endless):
    answer = long_answer(isolated, ModelFiles(endless / "base" / "model.gguf"))
    next(chunk for chunk in answer if chunk.text)
    os.kill(isolated._child.pid, signal.SIGKILL)
    with pytest.raises(LabError, match="it was killed, most likely because the memory was full"):
        list(answer)
    assert not isolated.in_memory(ModelFiles(endless / "base" / "model.gguf"))
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]


def test_answers_stream_at_once_and_one_that_is_no_longer_read_ends(isolated, endless):
    model = ModelFiles(endless / "base" / "model.gguf")
    answer = long_answer(isolated, model)
    next(chunk for chunk in answer if chunk.text)
    with ThreadPoolExecutor(4) as visitors:
        short = list(visitors.map(lambda n: ask(isolated, model, f"Question {n}", sampling=Sampling(0, max_tokens=20)),
                                  range(4)))  # fmt: skip
    assert [figures.completion_tokens for _, figures in short] == [20] * 4
    assert next(chunk for chunk in answer if chunk.text)  # it continued meanwhile
    answer.close()
    assert not isolated._child.calls


def test_closing_ends_the_process_and_a_question_starts_another(isolated, emoji):
    ask(isolated, emoji, QUESTION)
    before = isolated._child
    isolated.close()
    assert before.exit_code is not None and not isolated.in_memory(emoji)
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]


def test_the_process_ends_with_its_parent():
    script = f"""
import os, signal
from pathlib import Path
from inference.engines import Message, ModelFiles, Sampling
from inference.engines.isolation.engine import IsolatedEngine
engine = IsolatedEngine("llamacpp", threads=1)
list(engine.stream(ModelFiles(Path({str(NANO / "nano-Q8_0.gguf")!r})), [Message(role="user", content="hi")],
                   Sampling({GREEDY.temperature}), lambda: False))
print(engine._child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(600):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")


def patched_template(source: str, path: Path) -> ModelFiles:
    """The nano with another chat template, which must be shorter than its own."""
    data = bytearray((NANO / "nano-Q8_0.gguf").read_bytes())
    template = (NANO / "chat_template.jinja").read_bytes()
    start = data.index(template[:40])
    data[start : start + len(template)] = source.encode().ljust(len(template))
    path.write_bytes(data)
    return ModelFiles(path)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1|round(1000000000,'ceil') }}",
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a*b }}{% endfor %}{% endfor %}",
        "{{ ('x'*9) }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ messages[0].content.__class__.__mro__ }}",
    ],
)
def test_a_hostile_template_is_one_sentence_and_others_are_answered_meanwhile(isolated, nano, emoji, tmp_path, source):
    limit = soon(isolated, emoji)
    hostile = patched_template(source, tmp_path / "hostile.gguf")
    with ThreadPoolExecutor(1) as stranger:
        refused = stranger.submit(ask, isolated, hostile, "hello")
        for _ in range(2):
            assert seconds_to_answer(isolated, emoji, QUESTION, "Sweden") < limit
        with pytest.raises(LabError, match="chat template"):
            refused.result(timeout=300)
    assert seconds_to_answer(isolated, nano, "What does 🐙 mean?", "octopus") < limit


def test_a_long_history_costs_its_visitor_and_nobody_else(isolated, emoji, nano):
    ask(isolated, emoji, QUESTION)
    limit = soon(isolated, emoji)
    history = ["Tell me about 🐼", "🐼 is the panda emoji."] * 1500
    with ThreadPoolExecutor(1) as other:
        long = other.submit(ask, isolated, nano, *history, "What does 🐙 mean?")
        for _ in range(3):
            assert seconds_to_answer(isolated, emoji, QUESTION, "Sweden") < limit
        answer, figures = long.result(timeout=300)
    assert figures.dropped_turns > 1400 and "octopus" in answer


def test_a_process_that_hangs_is_killed_and_its_visitors_are_told(isolated, emoji, endless, monkeypatch):
    answer = long_answer(isolated, ModelFiles(endless / "base" / "model.gguf"))
    next(chunk for chunk in answer if chunk.text)
    with monkeypatch.context() as patch:
        patch.setattr("inference.engines.isolation.child_process.SILENCE", 2.0)
        while isolated._child._silence != 2.0:  # until a heartbeat
            time.sleep(0.05)
        os.kill(isolated._child.pid, signal.SIGSTOP)
        with pytest.raises(LabError, match="it did not respond"):
            list(answer)
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]  # from a fresh process


def test_a_question_without_text_yet_is_asked_again_by_itself_when_another_answer_crashes(isolated, emoji, endless):
    path = endless / "base" / "deadly2.gguf"
    deadly = with_layers(0, path)
    path.write_bytes(path.read_bytes() + b"another")
    ask(isolated, ModelFiles(endless / "base" / "model.gguf"), "hi", sampling=Sampling(0, max_tokens=2))
    with ThreadPoolExecutor(3) as visitors:
        answers = [visitors.submit(ask, isolated, emoji, QUESTION) for _ in range(2)]
        with pytest.raises(LabError, match=r"deadly2\.gguf"):
            ask(isolated, deadly, QUESTION)
        assert all("Sweden" in answer.result(timeout=300)[0] for answer in answers)


def test_the_process_has_no_secrets_no_network_and_reads_only_models(monkeypatch, emoji):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    engine = IsolatedEngine("llamacpp", threads=1)
    ask(engine, emoji, QUESTION)
    process = psutil.Process(engine._child.pid)
    assert "HF_TOKEN" not in process.environ() and "hf_secret" not in str(process.environ())
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    engine.close()
