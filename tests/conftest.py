"""What the tests share: a catalog of the embedded models, and an f16 base to compare with PyTorch."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client

os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes share the cores: more threads only wait for each other

from inference.engines import Message, ModelFiles, Sampling
from inference.settings import PROJECT

NANO = PROJECT / "adapters" / "nano"
EMOJI = PROJECT / "adapters" / "nano-emoji"
# Where CI is set, what a test needs is a must, and its absence a failure.
needs_espeak = pytest.mark.skipif(
    shutil.which("espeak-ng") is None and not os.environ.get("CI"), reason="there is no espeak-ng: apt-get install it"
)
GREEDY = Sampling(temperature=0, max_tokens=64)


@pytest.fixture(scope="session")
def engine():
    """A llama.cpp engine; one thread, since two test processes share two cores."""
    from inference.engines.llamacpp import Engine

    engine = Engine(threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def nano() -> ModelFiles:
    """The base as shipped."""
    return ModelFiles(NANO / "nano-Q8_0.gguf")


@pytest.fixture(scope="session")
def emoji() -> ModelFiles:
    """The emoji adapter on it."""
    return ModelFiles(NANO / "nano-Q8_0.gguf", EMOJI / "adapter-f16.gguf")


@pytest.fixture(scope="session")
def half_precision_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base as f16, by llama.cpp's converter."""
    from training.export import convert

    out = tmp_path_factory.mktemp("f16") / "nano-f16.gguf"
    convert("convert_hf_to_gguf.py", str(NANO), "--outtype", "f16", "--outfile", str(out))
    return out


def ask(engine, files: ModelFiles, *texts: str, sampling: Sampling = GREEDY, cancelled=lambda: False):
    """The answer and the figures of a conversation's last question; `texts` alternate between user and assistant."""
    messages = [Message(role=("user", "assistant")[i % 2], content=text) for i, text in enumerate(texts)]
    chunks = list(engine.stream(files, messages, sampling, cancelled))
    return "".join(chunk.text for chunk in chunks), chunks[-1].figures


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `python -m …` from the project as a user would."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


@contextmanager
def page(*arguments: str, folder: Path, log: Path, **environment: str) -> Iterator[Client]:
    """The page that `python ARGUMENTS` starts in `folder`, on a free port, as programs see it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as lines:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder, env={**os.environ, **environment, "PORT": str(port)}, stdout=lines, stderr=lines,
        )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield Client(f"http://127.0.0.1:{port}/", verbose=False)
    finally:
        process.terminate()
        process.wait(20)


def assert_refused(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2, one sentence with `words` in it, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """The shipped emoji run, exported and compared, in a folder of its own."""
    folder = Path(shutil.copytree(EMOJI, tmp_path_factory.mktemp("run") / "nano-emoji"))
    done = command("training", "export", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == 4
    return folder


@pytest.fixture(scope="session")
def catalog_with_a_slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalog and one more entry, "Babble": random weights, large enough that its endless answer can be stopped."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from training.export import convert

    folder = Path(shutil.copytree(PROJECT / "adapters", tmp_path_factory.mktemp("catalog") / "adapters"))
    model = folder / "babble"
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.save_pretrained(model)
    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8, "num_attention_heads": 16}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=8, max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(model)
    convert("convert_hf_to_gguf.py", str(model), "--outtype", "f16", "--outfile", str(model / "babble.gguf"))
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        catalog.write("  - {id: babble, name: Babble, summary: Random weights., folder: babble, file: babble.gguf}\n")
    return folder / "catalog.yaml"
