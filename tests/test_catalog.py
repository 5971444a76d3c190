"""The catalog file, valid and invalid."""

from __future__ import annotations

import pytest

from inference.catalog import Catalog
from inference.errors import LabError
from inference.lab import Lab
from inference.settings import Settings
from inference.visitors.values import check_messages

ROW = "  - {id: a, name: A, summary: s, repo: u/r, file: f.gguf}\n"


def test_the_namespace_completes_repository_names():
    path = Settings().catalog
    assert Catalog.read(path)["finetome-1b"].repo is None
    assert Catalog.read(path, "me")["finetome-1b"].repo == "me/Llama-3.2-1B-FineTome-lora"


def test_every_entry_has_a_state_and_unpublished_ones_name_the_command():
    lab = Lab(Catalog.read(Settings().catalog))
    states = {entry.id: lab.state(entry) for entry in lab.catalog.entries}
    assert states["nano-emoji"].kind == "ready"
    assert states["llama-3.2-1b"].text == "808 MB"
    assert "python -m training run finetome-1b" in states["finetome-1b"].explanation


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models:\n" + ROW.replace("summary", "sumary"), "models.0.sumary.*did you mean “summary”"),
        ("models:\n" + ROW + ROW, "id “a” twice"),
        ("models:\n" + ROW.replace("repo: u/r", "repo: u/r, base: b"), "base “b”"),
        ("models:\n" + ROW.replace(", repo: u/r", ""), "either a folder or a repo"),
        ("models:\n" + ROW.replace("name: A", "name: 3"), "models.0.name"),
        ("models: [", "not YAML .line"),
        ("models: []", "no models"),
    ],
)
def test_an_invalid_catalog_is_refused_in_one_sentence(tmp_path, text, words):
    path = tmp_path / "catalog.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=words):
        Catalog.read(path)


@pytest.mark.parametrize("text", ["", " \n\t", "a\0b", "half \ud83d of it"])
def test_an_invalid_question_is_refused(text):
    with pytest.raises(LabError, match=r"question"):
        check_messages([{"role": "user", "content": text}])
