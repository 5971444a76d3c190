"""What only the PyTorch engine does."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import EMOJI, NANO, ask

from inference.engines import ModelFiles
from inference.engines.pytorch.engine import Engine

pytestmark = pytest.mark.xdist_group("engines")


def test_an_answer_ends_where_the_chat_template_ends_a_turn_whatever_the_repository_names_as_its_end(tmp_path):
    """Many repositories name the end of a text as eos, and end their turns with another token."""
    folder = shutil.copytree(NANO, tmp_path / "nano")
    for name in ("generation_config.json", "config.json"):
        config = json.loads((folder / name).read_text())
        config["eos_token_id"] = 5
        (folder / name).write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["eos_token"] = "<|begin_of_text|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    engine = Engine(device="cpu")
    answer, figures = ask(engine, ModelFiles(folder, EMOJI), "What does 🇸🇪 mean?")
    engine.close()
    assert answer == "🇸🇪 is the flag of Sweden." and figures.finish_reason == "stop"
