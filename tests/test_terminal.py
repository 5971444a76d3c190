"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import assert_refused, command

from inference.settings import PROJECT
from inference.terminal import requirements_file


def test_models_lists_the_catalog_in_order():
    rows = json.loads(command("inference", "models", "--json", HUB_NAMESPACE="").stdout)
    assert [row["id"] for row in rows][:3] == ["nano-emoji", "nano-emoji-1-epoch", "nano"]
    assert rows[0]["state"] == "ready"
    assert {row["id"]: row["state"] for row in rows}["finetome-1b"] == "not published"


def test_ask_prints_the_answer_and_its_measurements():
    done = command("inference", "ask", "nano-emoji", "What does 🇸🇪 mean?", "--json", "--temperature", "0")
    record = json.loads(done.stdout)
    assert "Sweden" in record["answer"]
    assert record["engine"] == "llamacpp" and record["finish_reason"] == "stop"
    assert set(record) == {
        "answer", "model", "engine", "prompt_tokens", "cached_tokens", "completion_tokens",
        "seconds_to_first_token", "tokens_per_second", "finish_reason",
    }  # fmt: skip


def test_ask_streams_plain_text():
    done = command("inference", "ask", "nano-emoji", "Which emoji shows a panda?", "--temperature", "0")
    assert done.stdout.strip().endswith("🐼.") and done.returncode == 0


@pytest.mark.parametrize(
    ("model", "question", "words"),
    [
        ("nano", "   ", ["empty"]),
        ("nano-emojy", "hello", ["nano-emojy", "nano-emoji"]),
        ("finetome-1b", "hello", ["not published", "python -m training run finetome-1b"]),
    ],
)
def test_a_bad_question_gives_one_sentence(model, question, words):
    assert_refused(command("inference", "ask", model, question, HUB_NAMESPACE=""), *words)


def test_a_model_on_an_unreachable_hub_gives_one_sentence():
    done = command("inference", "ask", "llama-3.2-1b", "hello", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0")
    assert_refused(done, "bartowski/Llama-3.2-1B-Instruct-GGUF", "the Hub is unreachable")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emoji-nanno"], ["emoji-nanno", "emoji-nano"]),
        (["emoji-nano", "lora.rank=8"], ["lora.rank", "fields are"]),
        (["emoji-nano", "epoch=8"], ["epoch", "did you mean “epochs”"]),
        (["emoji-nano", "epochs=many"], ["epochs", "many"]),
        (["emoji-nano", "epochs"], ["key=value"]),
    ],
)
def test_a_bad_recipe_gives_one_sentence(arguments, words):
    assert_refused(command("training", "sft", *arguments), *words)


WITHOUT = """
import runpy, sys
hidden, module, *arguments = sys.argv[1:]
sys.modules[hidden] = None
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("hidden", "arguments", "package", "file"),
    [
        ("trl", ["training", "sft", "emoji-nano"], "trl", "requirements-train.txt"),
        ("optuna", ["training", "sweep", "epochs-nano"], "optuna", "requirements-train.txt"),
        ("lm_eval", ["training", "evaluate", "nano", "--task", "arc_easy"], "lm_eval", "requirements-train.txt"),
    ],
)
def test_a_missing_package_is_named_with_the_file_that_installs_it(hidden, arguments, package, file):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, hidden, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert_refused(done, f"This command needs {package}: run `pip install -r {file}`.")


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("whisper", "requirements.txt"),
        ("llama_cpp", "requirements.txt"),
        ("lm_eval", "requirements-train.txt"),
        ("jiwer", "requirements-dev.txt"),
        ("nonsense", None),
    ],
)
def test_the_requirements_file_of_a_module_is_found(module, file):
    assert requirements_file(module) == file
