"""Shapes of data sets on the Hub, made small (`docs/data_shapes.yaml`): what becomes of each row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from inference.settings import PROJECT
from training.data.reading.checked import check_row, read_source
from training.recipe import Source

SHAPES: list[dict[str, Any]] = yaml.safe_load((PROJECT / "docs" / "data_shapes.yaml").read_text(encoding="utf-8"))


def described(checked: dict[str, Any]) -> str:
    """What became of a row, as the table in the docs writes it."""
    if checked["problem"]:
        return f"left out: {checked['problem']}"
    turns = []
    for turn in checked["messages"]:
        name = (
            turn["role"] + ("'s call" if turn["tool_calls"] else "") + (" with reasoning" if turn["reasoning"] else "")
        )
        turns.append(f"**{name}**" if turn["train"] else name)
    parts = ["tools"] if checked["tools"] else []
    text = ", ".join([*parts, *turns]) or "**text**"
    if checked["rejected"]:
        text += f" / rejected: {', '.join(turn['role'] for turn in checked['rejected'])}"
    noted = [f"noted: {note}" for note in checked["notes"]]
    unused = [f"not used: {', '.join(checked['unused'])}"] if checked["unused"] else []
    return "; ".join([text, *noted, *unused])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has its own cache and working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def test_there_are_thirty_shapes():
    assert len({shape["shape"] for shape in SHAPES}) == len(SHAPES) >= 30


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["shape"])
def test_each_shape_becomes_what_the_table_says(shape):
    mapping = tuple(sorted(shape.get("columns", {}).items()))
    assert described(check_row(shape["row"], mapping, None)) == shape["becomes"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_files_of_a_shape_are_read_alike(suffix):
    """The same rows in a file, with the empty fields that Parquet adds to objects of a column."""
    for number, shape in enumerate(SHAPES):
        if shape["becomes"].endswith("columns that fit no form"):
            continue
        name = f"{number}.{suffix}"
        if suffix == "parquet":
            datasets.Dataset.from_list([shape["row"]]).to_parquet(name)
        else:
            Path(name).write_text(json.dumps(shape["row"]) + "\n", encoding="utf-8")
        ((checked,), _) = read_source(Source(name=name, columns=shape.get("columns", {})))
        assert described(checked) == shape["becomes"], shape["shape"]
