"""Each command and each option that changes the path taken runs once, and each module can be imported.

Other tests run the rest of them: `test_each_option_occurs_in_a_test` names an option that none uses.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml
from conftest import NANO, RECORDINGS, assert_refused, command
from processes import Forked
from typer.testing import CliRunner, Result

from inference.settings import PROJECT
from local_hub import LocalHub

PACKAGES = ("benchmarks", "inference", "local_hub", "scripts", "training", "ui")
APPS = ("benchmarks", "inference", "training")
SMALL = ["data.examples=64", "data.evaluation=4"]


def invoke(package: str, *arguments: str) -> Result:
    """Run a command in this process, which has the heavy imports already. Asserts exit code 0."""
    app = importlib.import_module(f"{package}.__main__").app
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done


def module_name(path: Path) -> str:
    """The dotted name of a module of the project."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] in ("__init__", "__main__") else parts)


def modules() -> list[Path]:
    """All modules of the project's packages."""
    return [path for package in PACKAGES for path in sorted((PROJECT / package).rglob("*.py"))]


def test_each_module_can_be_imported_and_each_command_line_shows_its_help():
    names = [module_name(path) for path in modules() if path.name != "__main__.py"]
    programs = [
        module_name(path) for path in modules() if re.search(r"^    (typer\.)?run\(\w+\)$", path.read_text(), re.M)
    ]
    assert {*APPS, "local_hub", "training.demo", "training.nano.base", "benchmarks.training_speed"} <= {*programs}
    code = f"""
import importlib, runpy, sys
for name in {names}:
    importlib.import_module(name)
for name in {programs}:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, name
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == len(programs)


def options(app: typer.Typer) -> set[str]:
    """The long names of all options of a command line."""
    root = typer.main.get_command(app)
    commands = [root, *getattr(root, "commands", {}).values()]
    parameters = [parameter for each in commands for parameter in each.params if parameter.param_type_name == "option"]
    return {name for parameter in parameters for name in parameter.opts if name.startswith("--")}


@pytest.mark.parametrize("package", APPS)
def test_each_option_occurs_in_a_test(package):
    tests = "".join(path.read_text("utf-8") for path in (PROJECT / "tests").glob("*.py"))
    found = options(importlib.import_module(f"{package}.__main__").app)
    assert found
    assert not {name for name in found if f'"{name}"' not in tests}


def test_ask_with_a_system_prompt_a_seed_and_a_greatest_length():
    question = ["ask", "nano-emoji", "What does 🐼 mean?", "--json"]
    drawn = [*question, "--temperature", "1.5", "--seed", "7", "--max-tokens", "4"]
    first, second = (json.loads(invoke("inference", *drawn).stdout) for _ in range(2))
    assert first["answer"] == second["answer"]
    assert first["completion_tokens"] == 4 and first["finish_reason"] == "length"
    told = json.loads(invoke("inference", *drawn, "--system", "You answer in one word.").stdout)
    assert told["prompt_tokens"] > first["prompt_tokens"]


def test_ask_the_base_by_the_strength_of_its_adapter():
    done = invoke("inference", "ask", "nano-emoji", "What does 🇸🇪 mean?", "--temperature", "0", "--strength", "0")
    assert "I don't know that one yet." in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inference", "doctor", "nano", "--against", "nowhere"], "There is no model “nowhere”"),
        (["training", "evaluate", "nano-emoji", "--strengths", "0,9"], "“0,9” can't be strengths"),
        (["training", "export", "nowhere", "--strength", "0.5"], "There is no run “nowhere”"),
        (
            ["training", "gate", "nano-emoji", "--against", "nano", "--lessons", "gone.jsonl"],
            "no lessons file gone.jsonl",
        ),
        (["training", "lessons", "nano-emoji", "--lessons", "gone.jsonl", "--name", "x"], "no lessons file gone.jsonl"),
        (["training", "run", "emoji-nano", "--namespace", "me", "--on", "warp-drive"], "Publishing needs a token"),
    ],
)
def test_a_wrong_option_gets_one_sentence(arguments, words):
    assert_refused(command(*arguments), words)


def test_transcribe_in_a_given_language(tmp_path):
    offline = {"https_proxy": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    recording = str(RECORDINGS / "which_emoji.flac")
    done = command("inference", "transcribe", recording, "--language", "en", **offline)
    assert done.returncode == 0 and "emoji" in done.stdout.lower(), done.stderr


def test_data_writes_a_data_card(tmp_path):
    done = invoke("training", "data", "emoji-nano", *SMALL, "--out", tmp_path)
    assert done.stdout.split()[-2:] == [str(tmp_path / "data.html"), str(tmp_path / "data.md")]
    assert "64" in (tmp_path / "data.md").read_text("utf-8")


def test_evaluate_all_suites_and_again(tmp_path):
    arguments = ["training", "evaluate", "nano-emoji", "--suite", "all", "--recipe", "emoji-nano", "--every", "100"]
    arguments += ["--out", tmp_path]
    first = invoke(*arguments)
    assert "flags" in first.stdout and "loss" in first.stdout
    kept = sorted(tmp_path.rglob("*.jsonl"))
    assert len(kept) == 2  # one file of answers for each suite
    kept[0].write_text("no JSON\n", "utf-8")
    assert invoke(*arguments, "--again").stdout == first.stdout


def test_evaluate_on_another_engine(tmp_path):
    arguments = ["training", "evaluate", "nano-emoji", "--engine", "pytorch", "--every", "300", "--out", tmp_path]
    assert "nano-emoji" in invoke(*arguments).stdout
    assert json.loads((tmp_path / "nano-emoji" / "evaluation.json").read_text("utf-8"))["engine"] == "PyTorch"


def test_evaluate_on_a_task_of_the_harness(tmp_path):
    rows = [{"sign": sign, "right": right} for sign, right in (("🐼", 0), ("🐙", 1))]
    (tmp_path / "signs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    task = {
        "task": "signs", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "signs.jsonl")}},
        "output_type": "multiple_choice", "doc_to_text": "What does {{sign}} mean?", "doc_to_target": "right",
        "doc_to_choice": "{{[sign + ' is the panda emoji.', sign + ' is the octopus emoji.']}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "signs.yaml").write_text(yaml.safe_dump(task), "utf-8")
    # A copy, because a complete evaluation is added to the model's own run record and card.
    folder = shutil.copytree(NANO, tmp_path / "nano-copy")
    done = invoke("training", "evaluate", folder, "--task", tmp_path / "signs.yaml", "--out", tmp_path)
    assert re.search(r"signs\b.*acc", done.stdout)


@pytest.mark.xdist_group("publish")  # shares the exported run with those
def test_run_of_a_finished_emoji_recipe_trains_nothing_and_does_the_rest(run, tmp_path, monkeypatch):
    """The path of `run` for the emoji data; another test has that for other data."""
    from training.evaluation.suites import emoji_suite

    asked = emoji_suite.questions()[:12]
    monkeypatch.setattr(emoji_suite, "questions", lambda: asked)
    folder = Path(shutil.copytree(run, tmp_path / "finished-emoji"))
    results = PROJECT / "runs" / "evaluations" / folder.name
    try:
        done = invoke("training", "run", "emoji-nano", "--out", folder)
    finally:
        shutil.rmtree(results, ignore_errors=True)
    assert "step/s" not in done.stderr
    assert done.stdout.count("passed") == 5 and f"| {folder.name} |" in done.stdout
    assert {"data.md", "evaluation.json", "README.md"} <= {path.name for path in folder.iterdir()}


@pytest.fixture
def own_recipe(tmp_path) -> Path:
    """A recipe of a few steps on a user's own conversations."""
    data = tmp_path / "signs.jsonl"
    signs = {"🐼": "panda", "🐙": "octopus", "🦁": "lion", "🐸": "frog"}
    with data.open("w", encoding="utf-8") as rows:
        for number in range(40):
            sign, name = list(signs.items())[number % 4]
            turns = [f"{number}. What does {sign} mean?", f"{sign} is the {name} emoji."]
            messages = [
                {"role": role, "content": text} for role, text in zip(("user", "assistant"), turns, strict=True)
            ]
            rows.write(json.dumps({"messages": messages}) + "\n")
    recipe = yaml.safe_load((PROJECT / "training" / "recipes" / "finetome-nano.yaml").read_text("utf-8"))
    recipe |= {"name": "own", "title": "Own", "max_steps": 4, "checkpoints": {"steps": 1}}
    recipe["data"] = {"name": str(data), "evaluation": 4}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


@pytest.mark.xdist_group("publish")
def test_the_demo_loop_on_own_data(own_recipe, tmp_path, monkeypatch):
    """The pieces of `make demo`: kill, resume from the Hub, publish, and the page that answers with what was
    published. `run` takes the path for data other than emoji."""
    from training import demo

    def start(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.Popen | Forked:
        if command[1] == "app.py":
            return subprocess.Popen(command, cwd=cwd, env=env)
        return Forked(*command[1:], **env)

    monkeypatch.setattr(demo, "subprocess", SimpleNamespace(Popen=start))
    with LocalHub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment(hub.token(demo.ACCOUNT)) | {"HF_HOME": str(tmp_path / "cache")}
        demo.start_and_kill(hub, str(own_recipe), tmp_path / "gone", environment)
        assert not (tmp_path / "gone").exists()
        demo.finish(demo.start(str(own_recipe), tmp_path / "own", environment))
        downloaded = [asked for asked in hub.requests if asked.method == "GET" and "optimizer.pt" in asked.path]
        assert downloaded  # it resumed from the checkpoint on the Hub
        with demo.page(environment | {"LIST_PRIVATE": "1"}) as page:
            listed = {row["id"] for row in page.predict(api_name="/models")}
            assert {"me/Own-lora", "me/Own-GGUF"} <= listed
            assert page.predict("What does 🐼 mean?", "me/Own-lora", temperature=0, api_name="/ask")
    record = json.loads((tmp_path / "own" / "run.json").read_text("utf-8"))
    assert record["steps"] == 4 and {"before", "after"} <= set(record["answers"][0])
    assert "## Parity" in (tmp_path / "own" / "README.md").read_text("utf-8")
