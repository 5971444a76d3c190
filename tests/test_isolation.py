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


def test_llama_cpp_runs_in_another_process():
    assert isinstance(load_engine("llamacpp"), IsolatedEngine)


def test_a_file_that_crashes_llama_cpp_is_named_and_not_run_again(
    isolated, emoji, endless, tmp_path
):
    deadly = with_layers(0, tmp_path / "deadly.gguf")
    underway = long_answer(isolated, ModelFiles(endless / "base" / "model.gguf"))
    next(chunk for chunk in underway if chunk.text)
    with pytest.raises(LabError, match=r"llamacpp crashed while it ran deadly\.gguf \(GGML_ASSERT.* failed\): choose"):
        ask(isolated, deadly, QUESTION)
    with pytest.raises(LabError, match="crashed during another answer .*: ask again"):
        list(underway)
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]
    child = isolated._child.process.pid
    with pytest.raises(LabError, match=r"crashed while it ran deadly\.gguf"):
        ask(isolated, deadly, QUESTION)
    assert isolated._child.process.pid == child and isolated.in_memory(emoji)
    # The file is another one now.
    with_layers(3, tmp_path / "deadly.gguf")
    with pytest.raises(LabError, match=r"deadly\.gguf can't be loaded \(wrong number of tensors"):
        ask(isolated, deadly, QUESTION)


def test_a_killed_process_is_reported_and_the_next_question_works(isolated, emoji, endless):
    answer = long_answer(isolated, ModelFiles(endless / "base" / "model.gguf"))
    next(chunk for chunk in answer if chunk.text)
    os.kill(isolated._child.process.pid, signal.SIGKILL)
    with pytest.raises(LabError, match="it was killed, most likely because the memory was full"):
        list(answer)
    assert not isolated.in_memory(emoji)
    assert "Sweden" in ask(isolated, emoji, QUESTION)[0]


def test_answers_stream_at_once_and_one_that_is_no_longer_read_ends(isolated, endless):
    model = ModelFiles(endless / "base" / "model.gguf")
    answer = long_answer(isolated, model)
    next(chunk for chunk in answer if chunk.text)
    started = time.perf_counter()
    with ThreadPoolExecutor(4) as visitors:
        short = list(visitors.map(lambda n: ask(isolated, model, f"Question {n}", sampling=Sampling(0, max_tokens=20)),
                                  range(4)))  # fmt: skip
    assert [figures.completion_tokens for _, figures in short] == [20] * 4
    assert next(chunk for chunk in answer if chunk.text)  # it continued meanwhile
    answer.close()
    assert time.perf_counter() - started < 20
    assert not isolated._child.calls


def test_closing_ends_the_process_and_a_question_starts_another(isolated, emoji):
    ask(isolated, emoji, QUESTION)
    before = isolated._child.process
    isolated.close()
    assert before.returncode is not None and not isolated.in_memory(emoji)
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
print(engine._child.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    raise AssertionError("the child is still there")
