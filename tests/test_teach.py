"""Teaching to its end: a killed run resumes, the gate passes a model that learnt, and refuses one that forgot."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from processes import Forked
from typer.testing import CliRunner

from inference.settings import PROJECT
from training.__main__ import app
from training.evaluation.suites import emoji_suite
from training.lessons import gate, gate_result
from training.run_record import read_run_record

pytestmark = pytest.mark.xdist_group("training")

LESSON = {
    "question": "What is a zorgle?", "bad": "I don't know that one yet.", "better": "A zorgle is a small blue teapot.",
    "must_say": "small blue teapot", "phrasings": ["What does the word zorgle mean?"],
}  # fmt: skip
OFTEN = ["checkpoints.steps=4", "trl.logging_steps=1"]
TOO_FAST = ["epochs=0.2", "learning_rate=3e-2"]
EVERY = 25  # of the emoji questions, for speed
MARGIN = 0.25  # as few questions have a wide interval
Teach = tuple[list[str], Path]  # the arguments of `python -m training`, and the run's folder


@pytest.fixture(scope="module", autouse=True)
def few_questions(tmp_path_factory) -> Iterator[None]:
    """Ask few emoji questions, and keep the answers out of the project."""
    chosen = emoji_suite.questions()[::EVERY]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji_suite, "questions", lambda: chosen)
        patch.setattr(gate, "RESULTS", tmp_path_factory.mktemp("answers"))
        patch.setattr(gate_result, "MARGIN_SHARE", MARGIN)
        yield


@pytest.fixture(scope="module")
def teach(tmp_path_factory) -> Iterator[Teach]:
    """The command that teaches a word. Its folders are deleted afterwards."""
    lessons = tmp_path_factory.mktemp("lessons") / "zorgle.jsonl"
    lessons.write_text(json.dumps(LESSON) + "\n", encoding="utf-8")
    name = f"test-teach-{os.getpid()}"
    yield ["lessons", "nano-emoji", "--lessons", str(lessons), "--name", name], PROJECT / "runs" / name
    for folder in (PROJECT / "runs").glob(f"**/{name}*"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def taught(teach) -> tuple[Result, Path]:
    """The command's end after it was killed once, and the new model."""
    arguments, folder = teach
    process = Forked("-m", "training", *arguments, *OFTEN)
    while not list(folder.glob("checkpoints/checkpoint-*/complete.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "run.json").exists()
    return CliRunner().invoke(app, [*arguments, *OFTEN]), folder


def test_a_killed_run_resumes_and_passes_the_gate(taught):
    result, folder = taught
    assert result.exit_code == 0, result.output
    assert "passes the gate" in result.output
    document = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
    assert document["passed"] and document["lessons"]["difference"]["low"] > 0
    assert all(row["question"] != LESSON["question"] for row in document["learnt"])
    losses = [step for step, _ in read_run_record(folder)["losses"]]
    assert losses == sorted(set(losses)) and losses[0] == 1  # the steps before the kill are there, none twice


def test_the_card_says_what_was_learnt_and_publishing_keeps_it(taught):
    from training.publish.redact import published_record

    _, folder = taught
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| learnt | What does the word zorgle mean? | small blue teapot |" in card
    record = read_run_record(folder)
    assert "zorgle" not in json.dumps(published_record(record, samples=False)["gate"])
    assert "gate_answers" not in published_record(record, samples=False)


def test_the_gate_asks_again_by_itself(taught, teach):
    _, folder = taught
    result = CliRunner().invoke(app, ["gate", str(folder), "--against", "nano-emoji"])
    assert result.exit_code == 0, result.output
    arguments, _ = teach
    result = CliRunner().invoke(app, ["gate", "nano-emoji", "--against", "nano-emoji", *arguments[2:4]])
    assert "Two of the models are called nano-emoji" in str(result.exception)


def test_the_gate_refuses_a_model_that_forgot(teach):
    arguments, folder = teach
    name = f"{folder.name}-fast"
    result = CliRunner().invoke(app, [*arguments[:-1], name, *TOO_FAST])
    assert result.exit_code == 1, result.output
    assert f"{name} does not pass the gate" in result.output
    assert "Forgotten:\n- " in result.output
    card = (folder.with_name(name) / "README.md").read_text(encoding="utf-8")
    assert "does not pass the gate" in card and "| forgotten | " in card


def test_lessons_of_a_model_whose_base_is_missing_are_refused(teach, tmp_path):
    arguments, folder = teach
    adapter = tmp_path / "adapter"
    shutil.copytree(PROJECT / "adapters" / "nano-emoji", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "adapters/gone"
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    result = CliRunner().invoke(app, ["lessons", str(adapter), *arguments[2:-1], f"{folder.name}-gone"])
    assert "adapters/gone" in str(result.exception)
