"""Which engine answers for an entry, and with what files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import EMOJI, NANO, assert_refused, command

from inference.catalog import Catalog
from inference.engines import choose_engine
from inference.errors import LabError
from inference.hub import artifacts
from inference.lab import Lab
from inference.settings import Settings

pytestmark = pytest.mark.xdist_group("engines")


@pytest.fixture
def only_gguf(tmp_path) -> Path:
    """A catalog whose one model is a GGUF file and nothing else."""
    (tmp_path / "merged").mkdir()
    shutil.copy(NANO / "nano-Q8_0.gguf", tmp_path / "merged")
    row = {"id": "merged", "name": "Merged", "summary": "A GGUF file.", "folder": "merged", "file": "nano-Q8_0.gguf"}
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"models": [row]}), encoding="utf-8")
    return tmp_path / "catalog.yaml"


def test_the_pytorch_engine_answers_in_the_terminal_when_it_is_asked_for():
    question = ("inference", "ask", "nano-emoji", "What does 🐼 mean?", "--temperature", "0", "--json")
    done = command(*question, ENGINE="pytorch")
    record = json.loads(done.stdout)
    assert record["engine"] == "pytorch" and "panda" in record["answer"]


def test_an_entry_that_is_only_a_gguf_file_runs_on_llama_cpp(only_gguf):
    question = ("inference", "ask", "merged", "What does 🐙 mean?", "--temperature", "0", "--json")
    record = json.loads(command(*question, ENGINE="pytorch", CATALOG=str(only_gguf)).stdout)
    assert record["engine"] == "llamacpp" and "octopus" in record["answer"]


def test_auto_takes_a_configured_server_first(monkeypatch):
    monkeypatch.delenv("REMOTE_URL", raising=False)
    assert choose_engine("auto") in ("llamacpp", "pytorch")
    monkeypatch.setenv("REMOTE_URL", "http://127.0.0.1:9")
    assert choose_engine("auto") == "remote"
    assert choose_engine("llamacpp") == "llamacpp"
    with pytest.raises(LabError, match="no engine “pytroch” .did you mean “pytorch”"):
        choose_engine("pytroch")


def test_a_server_that_is_away_is_said_and_the_catalog_stays():
    done = command("inference", "models", ENGINE="remote", REMOTE_URL="http://127.0.0.1:9")
    assert done.returncode == 0 and "nano-emoji" in done.stdout and "127.0.0.1:9" in done.stderr
    assert_refused(
        command("inference", "ask", "nano", "hello", ENGINE="remote", REMOTE_URL=""), "REMOTE_URL is not set"
    )


def test_a_folder_is_whole_with_every_shard(tmp_path):
    for name in ("config.json", "tokenizer.json", "model-1.safetensors"):
        (tmp_path / name).touch()
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(shards), encoding="utf-8")
    assert not artifacts.is_complete(tmp_path, adapter=False)
    (tmp_path / "model-2.safetensors").touch()
    assert artifacts.is_complete(tmp_path, adapter=False)
    assert artifacts.is_complete(EMOJI, adapter=True) and artifacts.is_complete(NANO, adapter=False)


def test_what_a_server_serves_becomes_the_catalog():
    lab = Lab(Catalog.read(Settings().catalog), "remote")
    served = lab.catalog.for_server(["nano-emoji", "someone/else"])
    assert [entry.id for entry in served.entries] == ["nano-emoji", "someone/else"]
    assert served["nano-emoji"].name == "Nano · Emoji" and served["someone/else"].name == "someone/else"
    assert lab.local.model(served["someone/else"]) == "someone/else"
