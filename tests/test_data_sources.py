"""Sources of a recipe: configuration, split, revision, columns, system prompt, mixtures and streams."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from huggingface_hub import HfApi
from test_data import lines, load_all, numbered, refusal, turns

from inference.settings import PROJECT
from local_hub import LocalHub
from training.data import fingerprint, load
from training.recipe import Data

RENAMED = {"question": "inputs", "answer": "targets"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Each test has its own cache and working directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


def folder_with_splits() -> str:
    """A folder with two configurations: `big` has the splits train and test, `small` has one."""
    Path("folder").mkdir()
    for name, start, count in (("big-train", 0, 100), ("big-test", 100, 20), ("small", 200, 10)):
        lines(f"folder/{name}.jsonl", numbered(300)[start : start + count])
    Path("folder/README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: big\n  data_files:\n  - {split: train, path: big-train.jsonl}\n"
        "  - {split: test, path: big-test.jsonl}\n"
        "- config_name: small\n  data_files:\n  - {split: only, path: small.jsonl}\n---\n"
    )
    return "folder"


def test_configurations_splits_and_slices():
    name = folder_with_splits()
    counts = {
        "train": 100,
        "test": 20,
        "train+test": 120,
        "train[:10]": 10,
        "train[10%:]": 90,
        "train[:5]+test[-5:]": 10,
    }
    for split, count in counts.items():
        assert load_all(name, config="big", split=split).report.rows == count, split
    # A data set with a single split needs no name, and slices it too.
    assert load_all(name, config="small").report.rows == 10
    assert load_all(name, config="small", split="train[:4]").report.rows == 4


def test_wrong_names_are_one_sentence_with_the_right_ones():
    name = folder_with_splits()
    assert refusal(name) == "folder has several configurations: set data.config to one of big, small."
    assert refusal(name, config="bg") == (
        "folder has no configuration “bg” (did you mean “big”?): set data.config to one of big, small."
    )
    assert refusal(name, config="big", split="tset") == (
        "folder has no split “tset” (did you mean “test”?): set data.split to one of train, test."
    )
    assert "write data.split as a name, a slice" in refusal(name, config="big", split="train[a:b]")
    assert (
        refusal(name, config="big", revision="main")
        == "folder is a folder and has no revision: leave data.revision out."
    )
    rows = lines("rows.jsonl", [{"inputs": "Hi", "targets": "Hello."}])
    assert "columns inputs, targets, which fit no form" in refusal(rows)
    assert refusal(rows, columns={"question": "input", "answer": "targets"}) == (
        "rows.jsonl has no column “input” (did you mean “inputs”?): set data.columns.question to one of inputs, "
        "targets."
    )
    assert "can't say what “qestion” is (did you mean “question”?)" in refusal(rows, columns={"qestion": "inputs"})
    assert "data.config" in refusal(rows, config="big")


def test_columns_and_a_system_prompt():
    rows = [
        {"inputs": "Hi", "targets": "Hello.", "response": "Not this.", "id": 1},
        {"inputs": "Ho", "targets": "Hello.", "system": "Be long.", "response": "Nor this.", "id": 2},
    ]
    split = load_all(lines("rows.jsonl", rows), columns=RENAMED, system="Be brief.")
    found = {tuple(turn["content"] for turn in messages) for messages in split.train["messages"]}
    assert found == {("Be brief.", "Hi", "Hello."), ("Be long.", "Ho", "Hello.")}
    assert split.report.notes == {"the recipe's system prompt, added": 1}
    assert split.report.unused == {"response": 2, "id": 2}


def test_three_splits_have_no_row_in_common():
    lines("rows.jsonl", numbered(100))
    split = load(Data(name="rows.jsonl", evaluation=20, validation=10))
    parts = [{json.dumps(row) for row in rows} for rows in (split.evaluation, split.validation, split.train)]
    assert [len(part) for part in parts] == [20, 10, 70] and len(set.union(*parts)) == 100
    without = load(Data(name="rows.jsonl", evaluation=20))
    assert list(without.evaluation) == list(split.evaluation)
    assert list(without.train)[:10] == list(split.validation)
    message = refusal("rows.jsonl", evaluation=90, validation=10)
    assert "data.evaluation and data.validation hold out 100: set it lower" in message


def test_a_mixture_has_its_parts_by_weight_in_every_split():
    def named(name: str, count: int) -> str:
        return lines(f"{name}.jsonl", [{"messages": turns(f"{name} {i}?", "Yes.")} for i in range(count)])

    fields = {
        "name": named("a", 1000), "weight": 3.0, "evaluation": 40, "validation": 20, "examples": 200,
        "mixture": [{"name": named("b", 400), "weight": 1.0}],
    }  # fmt: skip
    split = load(Data.model_validate(fields))

    def shares(rows: datasets.Dataset) -> dict[str, int]:
        return dict(Counter(messages[0]["content"][0] for messages in rows["messages"]))

    assert shares(split.train) == {"a": 150, "b": 50}
    assert shares(split.evaluation) == {"a": 30, "b": 10} and shares(split.validation) == {"a": 15, "b": 5}
    assert {name: part.train for name, part in split.report.sources.items()} == {"a.jsonl": 150, "b.jsonl": 50}
    # Without `examples`, the part that ends first sets the size.
    complete = load(Data.model_validate({**fields, "examples": None}))
    assert shares(complete.train) == {"a": 955, "b": 318}
    # A repeated row of a later part is left out.
    mixture = [{"name": named("b", 400)}, {"name": "a.jsonl"}]
    same = load(Data.model_validate({**fields, "name": named("c", 400), "mixture": mixture}))
    assert set(same.report.sources) == {"c.jsonl", "b.jsonl", "a.jsonl"}
    emoji = load(Data.model_validate({**fields, "mixture": [{"name": "emoji"}]}))
    assert emoji.report.forms["emoji"] > 1000 and len(emoji.train) == 200


def test_a_stream_reads_no_more_than_it_needs():
    rows = [*numbered(50), *numbered(50), *numbered(1000)]
    split = load(Data(name=lines("rows.jsonl", rows), stream=True, examples=60, evaluation=10))
    assert (len(split.train), len(split.evaluation)) == (60, 10)
    assert split.report.rows == 170  # 50, the same 50 again, and 70 of which 20 are new
    assert "set data.examples" in refusal("rows.jsonl", stream=True)
    assert "leave the slice out" in refusal("rows.jsonl", stream=True, examples=5, split="train[:100]")


def test_a_data_set_is_parsed_once_until_its_file_changes(monkeypatch):
    from training.data.reading import checked

    lines("rows.jsonl", numbered(30))
    first = load_all("rows.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(checked, "check_row", None)
        assert fingerprint(load_all("rows.jsonl").train) == fingerprint(first.train)
    lines("rows.jsonl", numbered(31))
    assert load_all("rows.jsonl").report.rows == 31
    # Another code of the reader reads it again.
    monkeypatch.setattr(checked, "code", lambda: "another")
    monkeypatch.setattr(checked, "check_row", None)
    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load_all("rows.jsonl")


LOAD = """
import json, sys
from inference.errors import LabError
from training.data import load
from training.recipe import Data
for fields in map(json.loads, sys.argv[1:]):
    try:
        print(load(Data.model_validate({"evaluation": 0, **fields})).report.rows)
    except LabError as error:
        print(error)
"""


@pytest.mark.xdist_group("hub")
def test_configurations_revisions_and_streams_on_the_hub(tmp_path):
    folder_with_splits()
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token("me"))
        api.create_repo("me/data", repo_type="dataset")
        api.upload_folder(folder_path="folder", repo_id="me/data", repo_type="dataset")
        first = api.dataset_info("me/data").sha
        lines("big-train.jsonl", numbered(110))
        for source, target in (("big-train.jsonl", "big-train.jsonl"), ("folder/small.jsonl", "more.jsonl")):
            api.upload_file(path_or_fileobj=source, path_in_repo=target, repo_id="me/data", repo_type="dataset")

        def loaded(*sources: dict, **environment: str) -> list[str]:
            done = subprocess.run(
                [sys.executable, "-c", LOAD, *(json.dumps({"name": "me/data", **fields}) for fields in sources)],
                cwd=PROJECT, capture_output=True, text=True, check=True, env={**hub.environment(), **environment},
            )  # fmt: skip
            return done.stdout.splitlines()

        big = {"config": "big"}
        assert loaded(big, {**big, "revision": first}, {**big, "split": "test[:5]"}) == ["110", "100", "5"]
        assert loaded({**big, "stream": True, "examples": 20}) == ["20"]
        missing, revision, split, column = loaded(
            {}, {**big, "revision": "mian"}, {**big, "split": "tran"}, {**big, "columns": {"messages": "mesages"}}
        )
        assert missing == "me/data has several configurations: set data.config to one of big, small."
        assert revision == (
            "me/data has no revision “mian” (did you mean “main”?): set data.revision to a commit, or one of main."
        )
        assert "did you mean “train”?" in split and "set data.split to one of train, test" in split
        assert "has no column “mesages” (did you mean “messages”?)" in column
        # A data set that was read before needs no network.
        assert loaded(big, HF_HUB_OFFLINE="1") == ["110"]
