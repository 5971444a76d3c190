"""The notebooks: their code cells in order, in a fresh interpreter, with the nano recipes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import NANO
from gradio_client import Client
from huggingface_hub import HfApi

from inference.settings import PROJECT
from local_hub import LocalHub

pytestmark = pytest.mark.xdist_group("notebooks")

NOTEBOOKS = {path.stem: path for path in (PROJECT / "notebooks").glob("*.ipynb")}
SMALL = "data.examples=64 data.evaluation=4 epochs=1 batch_size=8 warmup_steps=1"
CATALOG = f"""
models:
  - {{id: base, name: Base, summary: B, folder: {NANO}, file: nano-Q8_0.gguf}}
  - {{id: mine, name: Mine, summary: M, repo: "{{namespace}}/Nano-Notebook-lora", file: adapter-f16.gguf, base: base}}
"""
# The modules that exist only in Colab.
COLAB = """
import builtins, sys, types
builtins.get_ipython = lambda: "google.colab"
for name in ("google.colab", "google.colab.userdata", "google.colab.errors"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["google.colab"].userdata = sys.modules["google.colab.userdata"]
sys.modules["google.colab.errors"].Error = OSError
sys.modules["google.colab.userdata"].NotebookAccessError = PermissionError
sys.modules["google.colab.userdata"].SecretNotFoundError = KeyError
sys.modules["google.colab.userdata"].get = {"HF_TOKEN": "hf_of_colab"}.__getitem__
"""


def cells(name: str) -> dict[str, str]:
    """A notebook's code cells by id, in order."""
    book = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"}


def start(code: list[str], folder: Path = PROJECT / "notebooks", **environment: str) -> subprocess.Popen:
    """Run cells in the notebook's own folder, as Jupyter does."""
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)],
        cwd=folder, env={**os.environ, **environment}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A shell's background jobs and their children ignore SIGINT, but Jupyter's kernels do not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_valid_and_has_no_outputs(name):
    book = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"], book["metadata"]["kernelspec"]["name"]) == (4, 5, "python3")
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        of_code = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        assert cell == {key: cell[key] for key in ("cell_type", "id", "metadata", "source")} | of_code
    assert "torch" not in "".join(cells(name).values())  # training and answering are the project's


def test_the_two_training_notebooks_differ_in_their_parameters_only():
    emoji, finetome = cells("emoji"), cells("finetome")
    assert emoji.pop("parameters") != finetome.pop("parameters")
    assert emoji == finetome


@pytest.fixture
def run_folder():
    """The folder of the notebook's run, removed afterwards."""
    folder = PROJECT / "runs" / "notebook-test"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_model_is_trained_published_and_asked(tmp_path, run_folder):
    (tmp_path / "catalog.yaml").write_text(CATALOG, encoding="utf-8")
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.token("me")
        process = start(
            list(cells("emoji").values()), RECIPE="emoji-nano", NAMESPACE="me", MODEL="mine",
            OVERRIDES=f"{SMALL} name={run_folder.name} title=Nano-Notebook", QUESTION="What does 🐼 mean?",
            CATALOG=str(tmp_path / "catalog.yaml"), **hub.environment(token),
        )  # fmt: skip
        printed = process.communicate(timeout=600)[0]
        assert process.returncode == 0, printed
        assert f"{hub.url}/me/Nano-Notebook-lora" in printed and "panda" in printed.splitlines()[-1]
        assert "adapter-f16.gguf" in HfApi(endpoint=hub.url, token=token).list_repo_files("me/Nano-Notebook-lora")
    assert "# Data of notebook-test" in (run_folder / "data.md").read_text(encoding="utf-8")


def test_a_failing_command_ends_the_notebook_with_its_message():
    process = start(list(cells("finetome").values()), RECIPE="finetome-nanno")
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 1
    assert "did you mean “finetome-nano”?" in printed and "failed with code 2" in printed.splitlines()[-1]


def answers(url: str) -> bool:
    """Whether the page responds."""
    try:
        return urllib.request.urlopen(url, timeout=30).status == 200
    except OSError:
        return False


def test_the_page_runs_until_the_cell_is_stopped():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    process = start(list(cells("chat").values()), PORT=str(port))
    until = time.monotonic() + 600
    while not answers(url):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.2)
    page = Client(url, verbose=False)
    answer = page.predict("What does 🇸🇪 mean?", "nano-emoji", api_name="/ask", temperature=0)
    assert "Sweden" in answer
    page.close()
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=600)[0]
    assert url.rstrip("/") in printed and "KeyboardInterrupt" in printed
    assert not answers(url)


def test_in_colab_the_project_is_cloned_and_the_token_is_read_from_the_secrets(tmp_path):
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "requirements-train.txt").write_text("pip\n", encoding="utf-8")
    git = ["git", "-C", str(origin), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "All"]):
        subprocess.run([*git, *command], check=True)
    book = cells("emoji")
    (tmp_path / "content").mkdir()
    process = start(
        [COLAB, *(book[name] for name in ("parameters", "setup", "token")), "print(PROJECT, os.environ['HF_TOKEN'])"],
        tmp_path / "content", REPOSITORY=origin.as_uri(), HF_TOKEN="", HF_HOME=str(tmp_path), PIP_NO_INDEX="1",
    )  # fmt: skip
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    clone = tmp_path / "content" / "llama-finetuning-lab"
    assert printed.splitlines()[-1] == f"{clone} hf_of_colab"
    assert (clone / "requirements-train.txt").is_file()
