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
        mixed = shape["shape"] in ("content in parts", "an image in the content")  # text and lists in one column
        if shape["becomes"].endswith("columns that fit no form") or (mixed and suffix == "parquet"):
            continue
        name = f"{number}.{suffix}"
        if suffix == "parquet":
            datasets.Dataset.from_list([shape["row"]]).to_parquet(name)
        else:
            Path(name).write_text(json.dumps(shape["row"]) + "\n", encoding="utf-8")
        ((found,), _) = read_source(Source(name=name, columns=shape.get("columns", {})))
        assert described(found) == shape["becomes"], shape["shape"]


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """What becomes of one row."""
    return check_row(row, (), None)


def contents(turns: list[dict[str, Any]]) -> list[str]:
    """The texts of turns."""
    return [turn["content"] for turn in turns]


def test_tool_calls_have_one_form():
    function = {"name": "weather", "arguments": {"city": "Zürich"}}
    text = json.dumps(function["arguments"])
    user = {"role": "user", "content": "Rain?"}
    written = [
        {"tool_calls": [{"id": "c1", "type": "function", "function": {**function, "arguments": text}}]},
        {"tool_calls": [{"function": function}]},
        {"tool_calls": json.dumps([function])},
        {"function_call": {**function, "arguments": text}},
    ]
    for each in written:
        (_, answer) = checked({"messages": [user, {"role": "assistant", "content": None, **each}]})["messages"]
        (call,) = json.loads(answer["tool_calls"])
        assert call.pop("id", "c1") == "c1" and call == {"type": "function", "function": function}, each
    broken = {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {}}}]}
    assert checked({"messages": [user, broken]})["problem"] == "a tool call without a name"
    tools = checked({"prompt": "Rain?", "response": "No.", "tools": [{"name": "weather"}]})["tools"]
    assert json.loads(tools) == [{"type": "function", "function": {"name": "weather"}}]


def test_the_prompt_of_a_preference_may_be_in_both_answers():
    system = {"role": "system", "content": "Be brief."}
    question, again = ({"role": "user", "content": text} for text in ("Hi", "Why?"))
    good, bad = ({"role": "assistant", "content": text} for text in ("Hello.", "Go away."))
    earlier = [question, good, again]
    rows = [
        {"prompt": earlier, "chosen": [good], "rejected": [bad]},
        {"prompt": [question], "chosen": [*earlier, good], "rejected": [*earlier, bad]},
        {"prompt": "Why?", "chosen": [*earlier, good], "rejected": [*earlier, bad]},
        {"chosen": [*earlier, good], "rejected": [*earlier, bad]},
        {"prompt": earlier, "chosen": "Hello.", "rejected": "Go away."},
    ]
    for row in rows:
        for with_system in ({}, {"system": "Be brief."}):
            found = checked(row | with_system)
            expected = [system["content"]] * bool(with_system) + ["Hi", "Hello.", "Why?", "Hello."]
            assert contents(found["messages"]) == expected, row
            assert [turn["train"] for turn in found["messages"]].count(True) == 1 and found["messages"][-1]["train"]
            assert contents(found["rejected"]) == ["Go away."]
    assert checked({"prompt": "Hi", "chosen": "Same.", "rejected": "Same. "})["problem"] == "two equal answers"
    assert checked({"chosen": "A.", "rejected": "B."})["problem"] == "no question before the answers"
    other = [{"role": "user", "content": "Ho"}, bad]
    assert checked({"chosen": [question, good], "rejected": other})["problem"] == "answers to different questions"


def test_what_a_turn_holds_beside_text_is_counted():
    def problem(content: Any, role: str = "user") -> str:
        answer = {"role": "assistant", "content": "Hello."}
        return checked({"messages": [{"role": role, "content": content}, answer]})["problem"]

    assert problem([{"type": "image_url", "image_url": {"url": "a.png"}}]) == "a turn with an image"
    assert problem([{"type": "input_audio", "input_audio": {}}]) == "a turn with an audio"
    assert problem([{"type": "video"}]) == "a turn with a video"
    assert problem(["Hi", "Ho"]) == problem({"a": 1}) == problem(7) == "a turn that is not text"
    # Several answers in a column are not joined to one.
    assert checked({"question": "Hi", "answer": ["Hello.", "Ho."]})["problem"] == "a turn that is not text"


def test_a_long_json_list_is_decoded_piece_by_piece():
    rows = [{"prompt": f"{i} {'é🐼 ' * (i % 700)}", "response": "Yes, [really] {so}."} for i in range(3000)]
    Path("long.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    assert Path("long.json").stat().st_size > 5 << 20
    found, _ = read_source(Source(name="long.json"))
    assert [turns[0]["content"] for turns in found["messages"]] == [row["prompt"] for row in rows]


def test_a_folder_says_which_files_are_not_read():
    Path("folder").mkdir()
    for name in ("train.jsonl", "more.csv"):
        Path("folder", name).write_text('{"prompt": "Hi", "response": "Hello."}\n', encoding="utf-8")
    assert read_source(Source(name="folder"))[1] == ["more.csv"]
